"""Findings about a saved LoRA adapter: is what lies in its folder enough to use it again."""

import copy
import json
import math
import textwrap
from pathlib import Path

from qlora_kit.doctor.findings import error, ok, warning

PICKLES = (".bin", ".pt", ".pth", ".pkl")


def adapter(folder, base=None):
    """Findings about an adapter's folder. base: the model that it is meant for, or its config.

    Without one it is the base that the adapter names, if that is on this machine; where it is not,
    a line says that the fit was not looked at. The hub is not asked.
    """
    folder, base = Path(folder), getattr(base, "config", base)
    return [*_pickles(folder), *_files(folder, base)]


def _pickles(folder):
    names = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if _only_pickled(folder):
        yield warning(
            "the adapter's weights are a pickle, adapter_model.bin, and were not looked at",
            "A pickle can run any code when it is loaded: many will not load one.",
            "PeftModel.from_pretrained(base, folder).save_pretrained(folder), and after that "
            "delete adapter_model.bin",
        )
    elif names:
        yield warning(
            f"pickles in the folder: {', '.join(names)}",
            "A pickle can run any code when it is loaded. An adapter needs none; to resume a "
            "checkpoint they are needed.",
            "share a copy of the folder without them, and do not load those of others",
        )


def _only_pickled(folder):
    whole = (folder / "adapter_model.safetensors").exists()
    return (folder / "adapter_model.bin").exists() and not whole


def _files(folder, base):
    from safetensors import SafetensorError, safe_open

    from qlora_kit.doctor import saved

    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"]
        base = base or saved.cached(settings)
        expected, tied = _expected(folder, base) if base else ({}, [])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        yield error(
            f"adapter_config.json cannot be used: {textwrap.shorten(str(problem), 120)}",
            "It says which modules the adapter sits on, its rank and its scaling.",
            "give the folder that save_pretrained wrote, and the base that it was trained on",
        )
        return
    yield from saved.name(settings, base)
    if _only_pickled(folder):
        return
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        yield error(
            f"adapter_model.safetensors cannot be read: {problem}",
            "It is not there, or was cut off while it was written or sent.",
            "save or copy it again",
        )
        return
    yield from saved.numbers(tensors)
    if base is None:
        name = settings["base_model_name_or_path"]
        yield ok(f"whether it fits its base was not looked at: {name} is not here")
        return
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    along = {n for n in set(shapes) - set(expected) if "lora_" not in n}
    yield from _fit({n: s for n, s in shapes.items() if n not in along}, expected, settings)
    yield from tied
    yield from saved.tables({name: tensors[name] for name in along}, base)
    yield from saved.words(folder, shapes, base)


def _expected(folder, config):
    """The name and shape of every tensor that PEFT would save for this adapter on this base, and
    the findings about a table that is embedding and output layer.

    The base is built without numbers (on PyTorch's meta device). Each A is [rank, in], each B
    [out, rank] (Hu et al. 2021, arXiv 2106.09685, section 4.1). ValueError if no module fits.
    """
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    from qlora_kit.doctor import trained

    config = copy.deepcopy(config)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
        lora = PeftConfig.from_pretrained(folder)
        lora.base_model_name_or_path = empty.name_or_path or None  # PEFT warns of a change
        model = get_peft_model(empty, lora)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, [*trained.tied(model)]


def _fit(shapes, expected, settings):
    numbers, formula = (sum(map(math.prod, s.values())) for s in (shapes, expected))
    size = f"The file holds {numbers:,} numbers; r (in + out) for each module makes {formula:,}."
    foreign, missing = set(shapes) - set(expected), set(expected) - set(shapes)
    other = {name for name in shapes if shapes[name] != expected.get(name, shapes[name])}
    for names, what, why in (
        (foreign, "have no place on this base", "They are ignored."),
        (missing, "are missing", "PEFT puts untrained ones there, and only warns."),
        (other, "have another shape", "This base is not the adapter's."),
    ):
        if names:
            yield error(
                f"{len(names)} tensors {what}, such as {min(names)}",
                f"{why} {size}",
                f"use the base that it was trained on ({settings['base_model_name_or_path']}), or "
                "save the trained model again with save_pretrained",
            )
