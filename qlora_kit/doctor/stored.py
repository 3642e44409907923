"""A base as it lies on this disk, by its name or folder. The hub is never asked."""

import json

from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import cached_file

HERE = {"local_files_only": True}


def config(name):
    """The config of a base; None where it is not here."""
    return _load(AutoConfig, name)


def tokenizer(name):
    """The tokenizer of a base; None where it is not here, or has none."""
    return _load(AutoTokenizer, name)


def _load(kind, name):
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **HERE) if name else None
    except (OSError, ValueError):
        return None


def rows(name):
    """How many rows the embedding of a base has; None where it is not here."""
    found = config(name)
    return found and found.get_text_config().vocab_size


def tensor(name, key):
    """One tensor out of a base's safetensors; None where it is not here."""
    index = _file(name, "model.safetensors.index.json")
    file = "model.safetensors"
    if index:
        with open(index, encoding="utf-8") as text:
            file = json.load(text)["weight_map"].get(key)
    path = file and _file(name, file)
    if not path:
        return None
    with safe_open(path, framework="pt") as tensors:
        return tensors.get_tensor(key) if key in tensors.keys() else None  # noqa: SIM118


def _file(name, file):
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **HERE)
