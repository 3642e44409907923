"""Findings about a model that is about to be trained with an adapter, and about its first step."""

import math
from collections import Counter

from qlora_kit.doctor.findings import Finding, error


def model(model):
    """Findings about a model with its adapter, before training."""
    return [*_trained(model), *_wrapped_twice(model), *_repacked(model)]


def _trained(model):
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        yield error(
            "no parameter is trained",
            "Every parameter is frozen, so no step can change the model. An adapter that was "
            "loaded for answering is frozen as well.",
            "put an adapter on with get_peft_model or the trainer's peft_config, or load it with "
            "PeftModel.from_pretrained(..., is_trainable=True)",
        )
        return
    # modules_to_save are full copies beside the base, which PEFT saves with the adapter
    base = [name for name in trained if not ("lora_" in name or "modules_to_save" in name)]
    if base:
        yield error(
            f"parameters of the base are trained: {_counted(map(_part, base))}",
            "An adapter's file holds A and B alone. What the base learns besides is lost when you "
            "save: the adapter then stands on another base than it was trained on.",
            "let PEFT freeze the base: call get_peft_model once, and requires_grad_(True) on "
            "nothing; to train a module in full, name it in LoraConfig(modules_to_save=...)",
        )
    dtypes = [str(p.dtype).removeprefix("torch.") for p in trained.values()]
    if set(dtypes) != {"float32"}:
        yield Finding(
            "error" if "float16" in dtypes else "warning",
            f"trained parameters are not float32: {_counted(dtypes)}",
            "An update that is small beside its weight is rounded away in 16 bits, and a GPU "
            "without bfloat16 may fail at the first step.",
            "quirks.adapters_to_float32(trainer.model), after the trainer is built",
        )


def _part(name):
    """The part of a language model that a parameter belongs to, by its name."""
    parts = {"embed": "embedding", "lm_head": "output layer", "norm": "norms"}
    return next((part for mark, part in parts.items() if mark in name), "layers")


def _counted(names):
    return ", ".join(f"{name} ({count})" for name, count in Counter(names).items())


def _wrapped_twice(model):
    from peft import PeftModel

    if any(isinstance(module, PeftModel) for module in list(model.modules())[1:]):
        yield error(
            "an adapter was put on twice",
            "The second call has replaced the first adapter by a fresh one, and what is saved fits "
            "no base, by the names of its tensors. PEFT only warns.",
            "load the base anew, and call get_peft_model once, or leave it to the trainer's "
            "peft_config",
        )


def _repacked(model):
    """bitsandbytes 0.50.2 rewrites a 4-bit weight for a faster kernel in a forward pass in eval
    mode, on a CPU with AVX512-BF16 (nn/modules.py, Linear4bit.forward)."""
    import bitsandbytes

    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    layers = [layer for layer in layers if layer.weight.device.type == "cpu"]
    states = [layer.weight.quant_state for layer in layers]
    packed = sum(getattr(state, "packing_format_for_cpu", False) for state in states)
    unguarded = sum(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in layers)
    if packed:
        yield error(
            f"{packed} 4-bit weights were repacked for answering",
            "A backward pass and a merge read them in the old order: the loss looks right and the "
            "gradients are wrong.",
            "load the model anew, and call models.guard_cpu_repacking(model) right after it",
        )
    elif unguarded:
        yield error(
            f"{unguarded} 4-bit weights can be repacked on this processor",
            "The first answer in eval mode rewrites them. Training or merging after it uses wrong "
            "values, and nothing says so.",
            "models.guard_cpu_repacking(model), right after loading",
        )


def first_step(model, loss):
    """Findings after one backward pass of a fresh adapter: the loss, and the gradient of each B.

    A's gradient is zero then, since B is: that is as it should be.
    """
    import torch

    return [*_loss(torch.as_tensor(loss).item()), *_gradients(model)]


def _loss(loss):
    if not math.isfinite(loss):
        yield error(
            f"the loss is {loss}",
            "Numbers above 65,504 do not fit into float16, and Gemma has some; or no label of the "
            "batch was to be learnt.",
            "take the dtypes of models.pick_dtypes(), and look at the batch",
        )


def _gradients(model):
    gradients = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    if not gradients:
        yield error(
            "there is no adapter on the model",
            "Without one there is nothing that a step could change.",
            "get_peft_model, or the trainer's peft_config",
        )
    without = [name for name, grad in gradients.items() if grad is None or not grad.any()]
    if without:
        yield error(
            f"{len(without)} of {len(gradients)} B matrices got no gradient",
            "What gets none does not learn. There was no backward pass, or the matrix is frozen, "
            "or its A is zero as well, or its module takes no part in the answer.",
            f"look at {without[0]} and its A",
        )
    broken = sum(grad is not None and not grad.isfinite().all() for grad in gradients.values())
    if broken:
        yield error(
            f"{broken} of {len(gradients)} B matrices got a gradient with infinities or no numbers",
            "One such step makes every weight of the adapter useless.",
            "take the dtypes of models.pick_dtypes()",
        )
