"""Findings about where the adapter sits, and whether it is the one that is trained."""

import re

import torch
from peft import PeftMixedModel, PeftModel
from peft.utils.other import AuxiliaryTrainingWrapper

from qlora_kit.doctor.findings import error, ok, warning
from qlora_kit.doctor.layers import last, tuner_layers

CLASSIFIERS = ("classifier", "score")  # PEFT adds both to every classifier's modules_to_save


def wrapping(model):
    """What makes the other findings about a model pointless; at most one finding."""
    layers = tuner_layers(model).values()
    merged = sum(layer.merged for layer in layers)
    if isinstance(model, PeftMixedModel):
        yield error(
            "a PeftMixedModel cannot be saved",
            "PEFT has no save_pretrained for it, so that what it learns is lost.",
            "get_peft_model without mixed=True",
        )
    elif any(isinstance(module, PeftModel) for module in list(model.modules())[1:]):
        yield error(
            "an adapter was put on twice",
            "The second call has replaced the first adapter by a fresh one, and what is saved fits "
            "no base, by the names of its tensors. PEFT only warns.",
            "load the base anew. To go on with a saved adapter: PeftModel.from_pretrained(base, "
            "folder, is_trainable=True) and nothing after it; for a fresh one: get_peft_model "
            "once, or the trainer's peft_config",
        )
    elif layers and all(layer.disable_adapters for layer in layers):
        yield error(
            "the adapter is switched off",
            "The model answers and learns without it.",
            "model.enable_adapter_layers()",
        )
    elif merged:
        yield error(
            f"the adapter is merged into {merged} matrices",
            "It takes no part in the answer then, and gets no gradient. A merge into 4 bits rounds "
            "it besides, and unmerge_adapter does not bring the old weights back.",
            "model.save_pretrained(folder), load the base anew, and "
            "PeftModel.from_pretrained(base, folder, is_trainable=True)",
        )
    elif any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values()):
        yield ok("prompt learning: what is trained and saved was not looked at")


def findings(model):
    layers = tuner_layers(model)
    if layers:
        yield from _active(layers.values())
        yield from _unmatched(model, layers)


def _active(layers):
    active, trained = set(), set()
    for layer in layers:
        active.update(layer.active_adapters)
        for kind in layer.adapter_layer_names:
            for name, part in getattr(layer, kind, {}).items():
                parameters = [part] if isinstance(part, torch.Tensor) else part.parameters()
                if any(p.requires_grad for p in parameters):
                    trained.add(name)
    idle = sorted(trained - active)
    if idle:
        taking_part = ", ".join(sorted(active)) or "none"
        yield error(
            f"the adapter {', '.join(idle)} is trained, and {taking_part} is active",
            "Only an active adapter takes part in the answer and gets a gradient.",
            f"model.set_adapter({idle[0]!r})",
        )


def _unmatched(model, layers):
    """Names in a configuration that no module has. PEFT 0.21 warns of those in patterns alone."""
    for adapter, config in model.peft_config.items():
        on = [name for name, layer in layers.items() if _holds(layer, adapter)]
        whole = [n for n, m in model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
        nowhere = {
            "target_modules": [t for t in _names(config, "target_modules") if not _ends(on, t)],
            "modules_to_save": [
                t
                for t in _names(config, "modules_to_save")
                if not any(n.endswith(t) for n in whole) and t not in CLASSIFIERS
            ],
            "layers_to_transform": [
                i
                for i in _names(config, "layers_to_transform")
                if not any(f".{i}." in n for n in on)
            ],
        }
        for pattern in ("rank_pattern", "alpha_pattern"):
            nowhere[pattern] = [
                key
                for key in getattr(config, pattern, None) or {}
                if not any(re.match(rf"(.*\.)?({key})$", name) for name in on)
            ]
        told = [f"{', '.join(map(str, v))} ({field})" for field, v in nowhere.items() if v]
        if told:
            linear = {
                last(name)
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear) and not _inside(name, layers)
            }
            free = f" Linear layers without one: {', '.join(sorted(linear))}." if linear else ""
            yield warning(
                f"no module has what the adapter's configuration names: {'; '.join(told)}",
                f"PEFT passes over such a name, and nothing there is trained or set.{free}",
                "write names that the model has (print(model) shows them), or take these out; "
                'target_modules="all-linear" fits every model',
            )


def _names(config, field):
    """What a field of a configuration lists; nothing for a regular expression, which PEFT checks
    as a whole."""
    value = getattr(config, field, None)
    if isinstance(value, int):
        return [value]
    return [] if value is None or isinstance(value, str) else sorted(value)


def _ends(names, target):
    return any(f".{name}".endswith(f".{target}") for name in names)


def _holds(layer, adapter):
    return any(adapter in getattr(layer, kind, {}) for kind in layer.adapter_layer_names)


def _inside(name, layers):
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)
