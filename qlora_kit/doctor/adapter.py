"""Findings about a saved LoRA adapter."""

import copy
import json
import math
import textwrap
from pathlib import Path

from qlora_kit.doctor.findings import error, warning

PICKLES = (".bin", ".pt", ".pth", ".pkl")


def adapter(folder, base):
    """Findings about an adapter's folder; `base`: the model that it is meant for, or its config."""
    folder = Path(folder)
    return [*_pickles(folder), *_files(folder, getattr(base, "config", base))]


def _pickles(folder):
    names = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if names:
        yield warning(
            f"pickles in the folder: {', '.join(names)}",
            "A pickle can run any code when it is loaded. An adapter needs none.",
            "delete them before you share the folder, and do not load those of others",
        )


def _files(folder, config):
    from safetensors import SafetensorError, safe_open

    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        name = settings["base_model_name_or_path"]
        expected = _expected_shapes(folder, config)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        yield error(
            f"adapter_config.json cannot be used: {textwrap.shorten(str(problem), 120)}",
            "It says which modules the adapter sits on, its rank and its scaling.",
            "give the folder that save_pretrained wrote, and the base that it was trained on",
        )
        return
    if not name or Path(name).is_absolute():
        yield warning(
            f"the adapter calls its base {name!r}",
            "Nobody else finds the base by that, and on another base the adapter is noise.",
            "before saving: model.peft_config['default'].base_model_name_or_path = its name on "
            "the hub",
        )
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as problem:
        yield error(
            f"adapter_model.safetensors cannot be read: {problem}",
            "It is not there, or was cut off while it was written or sent.",
            "save or copy it again",
        )
        return
    yield from _tensors(shapes, expected, name)


def _expected_shapes(folder, config):
    """The name and shape of every tensor that PEFT would save for this adapter on this base.

    The base is built without numbers (on PyTorch's meta device). Each A is [rank, in], each B
    [out, rank] (Hu et al. 2021, arXiv 2106.09685, section 4.1). ValueError if no module fits.
    """
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
        lora = PeftConfig.from_pretrained(folder)
        lora.base_model_name_or_path = empty.name_or_path or None  # PEFT warns of a change
        model = get_peft_model(empty, lora)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _tensors(shapes, expected, base):
    numbers, formula = (sum(map(math.prod, s.values())) for s in (shapes, expected))
    size = f"The file holds {numbers:,} numbers; r (in + out) for each module makes {formula:,}."
    foreign, missing = set(shapes) - set(expected), set(expected) - set(shapes)
    along = {name for name in foreign if "lora_" not in name}
    other = {name for name in shapes if shapes[name] != expected.get(name, shapes[name])}
    for make, names, what, why in (
        (
            warning,
            along,
            "are weights of the base, saved along",
            "They replace the base's own when the adapter is loaded.",
        ),
        (error, foreign - along, "have no place on this base", "They are ignored."),
        (error, missing, "are missing", "PEFT puts untrained ones there, and only warns."),
        (error, other, "have another shape", "This base is not the adapter's."),
    ):
        if names:
            yield make(
                f"{len(names)} tensors {what}, such as {min(names)}",
                f"{why} {size}",
                f"use the base that it was trained on ({base}), and save with "
                "save_pretrained(..., save_embedding_layers=False)",
            )
