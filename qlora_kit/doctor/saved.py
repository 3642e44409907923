"""What an adapter's file holds: its base's name, its numbers, tables of the base, new tokens."""

import re
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft.utils.other import EMBEDDING_LAYER_NAMES

from qlora_kit import models
from qlora_kit.doctor import stored
from qlora_kit.doctor.findings import error, warning

TEMPLATE = "chat_template.jinja"


def name(settings, base):
    """The base's name in adapter_config.json, and against that of the base at hand."""
    said, own = settings["base_model_name_or_path"], getattr(base, "name_or_path", None)
    if not _on_the_hub(said):
        yield warning(
            f"the adapter calls its base {said!r}",
            "Nobody else finds the base by that, and on another base the adapter is noise.",
            "write its name on the hub into adapter_config.json (base_model_name_or_path); before "
            "saving: model.peft_config['default'].base_model_name_or_path = that name",
        )
    elif own and _on_the_hub(own) and _plain(own) != _plain(said):
        yield warning(
            f"the adapter was trained on {said}, and this base is {own}",
            "The shapes may fit, but the numbers are others: the adapter's changes are noise there "
            "or do less.",
            f"load {said}",
        )
    revision, commit = settings.get("revision"), getattr(base, "_commit_hash", None)
    if re.fullmatch("[0-9a-f]{40}", revision or "") and commit and commit != revision:
        yield warning(
            f"the adapter was trained on revision {revision[:8]} of its base, and this is "
            f"{commit[:8]}",
            "A base of the same name can hold other weights in another revision.",
            f"load it with revision={revision!r}",
        )


def _on_the_hub(name):
    """Whether a name can be one of the hub, and is not a folder of this machine."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return not (Path(name).exists() or re.search(r"(^|/)checkpoint-\d+$", name))


def _plain(name):
    """A model's name without its owner: mirrors and 4-bit copies hold the same model."""
    return re.sub(r"(-unsloth)?-bnb-4bit$", "", name.rpartition("/")[2].lower())


def numbers(tensors):
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        yield error(
            f"{len(broken)} tensors hold infinities or no numbers, such as {min(broken)}",
            "Every answer would be nan. Training went wrong: a rate too high, or float16.",
            "take a checkpoint from before, or train again with the dtypes of models.pick_dtypes()",
        )
    # of A and B one starts at zero: B, and in an embedding's adapter A
    a = re.compile(r"(lora_(?:embedding_)?)A")
    pairs = [(name, a.sub(r"\1B", name)) for name in tensors if a.search(name)]
    idle = [b for a, b in pairs if b in tensors and not (tensors[a].any() and tensors[b].any())]
    if idle and len(idle) == len(pairs):
        yield error(
            f"the adapter changes nothing: all {len(idle)} B matrices are zero",
            "So an adapter begins. This one was saved before training, or from another object than "
            "the one that was trained.",
            "trainer.model.save_pretrained(folder), after trainer.train()",
        )
    elif idle:
        yield warning(
            f"{len(idle)} of {len(pairs)} B matrices are zero, such as {min(idle)}",
            "There the adapter changes nothing: no gradient came to these modules.",
            "leave them out with LoraConfig(exclude_modules=...), or see doctor.first_step for why",
        )


def tables(along, base):
    """Tensors in the file that belong to the base: are they the base's own numbers, or others?

    Embedding and output layer get there with save_embedding_layers=True, and by themselves where
    the vocabulary has grown. Trained or new rows must stay; a mere copy need not.
    """
    copies, unknown, grown = [], [], {}
    for name, tensor in along.items():
        own = _own(name, base)
        if own is None:
            unknown.append(name)
        elif own.shape == tensor.shape and torch.equal(own.to(tensor.dtype), tensor):
            copies.append(name)
        table = name.split(".")[-2] in EMBEDDING_LAYER_NAMES
        if table and tensor.shape[0] != base.get_text_config().vocab_size:
            grown[name] = tensor.shape[0]
    if copies:
        yield warning(
            f"{len(copies)} tensors are weights of the base, saved along, such as {min(copies)}",
            "They are equal to the base's own, and make the file larger.",
            "model.save_pretrained(folder, save_embedding_layers=False)",
        )
    if unknown:
        yield warning(
            f"{len(unknown)} tensors are weights of the base, saved along, such as {min(unknown)}",
            "They replace the base's own when the adapter is loaded. The base's files are not here "
            "to be compared.",
            "if tokens were added or these were trained: nothing, they are needed; else "
            "model.save_pretrained(folder, save_embedding_layers=False)",
        )
    if grown:
        rows = max(grown.values())
        yield warning(
            f"{min(grown)} has {rows} rows, and the base {base.get_text_config().vocab_size}",
            "The adapter brings rows for new tokens. Loading it on this base raises a size "
            "mismatch.",
            f"base.resize_token_embeddings({rows}) before PeftModel.from_pretrained",
        )


def _own(name, base):
    """The base's own tensor of this name, as its files have it."""
    key = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    found = stored.tensor(base.name_or_path, key) if base.name_or_path else None
    if found is None and key == "lm_head.weight" and base.get_text_config().tie_word_embeddings:
        found = _own("model.embed_tokens.weight", base)
    return found


def words(folder, names, base):
    """What turns text into tokens: the folder's own tokenizer, or that of the base."""
    beside = any((folder / file).exists() for file in ("tokenizer_config.json", TEMPLATE))
    own = stored.tokenizer(str(folder)) if beside else None
    other = stored.tokenizer(base.name_or_path)
    if not beside and other is not None and not other.chat_template:
        yield warning(
            "no tokenizer in the folder, and that of the base has no chat template",
            "If it was trained on chats, nobody can ask it as it was trained.",
            "tokenizer.save_pretrained(folder), with the one that the trainer had",
        )
    if own is None or other is None or any("embed_tokens" in n or "lm_head" in n for n in names):
        return
    rows, known = stored.rows(base.name_or_path), other.get_vocab()
    new = sorted(t for t, i in own.get_vocab().items() if t not in known and i >= rows)
    if new:
        yield error(
            f"{len(new)} new tokens have no row in the base, and none is saved, such as {new[0]}",
            f"The base has {rows} rows. Those of new tokens were in the trained model alone: "
            "loaded again, they get random numbers.",
            "trainer.model.save_pretrained(folder, save_embedding_layers=True)",
        )


def cached(settings):
    """The config of the base that an adapter names, if that is here; else None."""
    said = settings["base_model_name_or_path"]
    folders = (models.cached(p) for p in models.PROFILES.values() if said in p.hub)
    return stored.config(next(filter(None, folders), said))
