"""Findings about what is trained: whether it will be saved, and whether what is needed is trained.

Which parameters are saved is asked of PEFT itself, and compared by identity, not by name.
"""

from collections import Counter

from peft import get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper

from qlora_kit.doctor import stored
from qlora_kit.doctor.findings import Finding, error, warning
from qlora_kit.doctor.layers import last, tuner_layers

TABLES = 'LoraConfig(modules_to_save=["embed_tokens"], ensure_weight_tying=True)'


def findings(model):
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        yield error(
            "no parameter is trained",
            "Every parameter is frozen, so no step can change the model. An adapter that was "
            "loaded for answering is frozen as well.",
            "put an adapter on with get_peft_model or the trainer's peft_config, or load it with "
            "PeftModel.from_pretrained(..., is_trainable=True)",
        )
    elif not tuner_layers(model):
        yield no_adapter()
    else:
        yield from _lost(model, trained)
        yield from _dtypes(trained)
        if hasattr(
            getattr(model, "config", None), "get_text_config"
        ):  # else it is no language model
            yield from _new_rows(model)
            yield from tied(model)


def no_adapter():
    return error(
        "there is no adapter on the model",
        "Nothing small is trained that could be saved beside the base.",
        "get_peft_model, or the trainer's peft_config",
    )


def saved(model):
    """The ids of the parameters that PEFT saves with this model's adapters."""
    state = dict(model.named_parameters(remove_duplicate=False))
    state |= dict(model.named_buffers(remove_duplicate=False))
    files = (  # "auto", the default, would ask the hub whether the vocabulary has grown
        get_peft_model_state_dict(model, state, name, save_embedding_layers=False)
        for name in model.peft_config
    )
    return {id(tensor) for file in files for tensor in file.values()}


def _lost(model, trained):
    kept = saved(model)
    lost = [name for name, p in trained.items() if id(p) not in kept]
    if lost:
        modules = sorted({last(name.rpartition(".")[0]) for name in lost})
        yield error(
            f"parameters of the base are trained, and not saved: {_counted(map(_part, lost))}",
            "An adapter's file holds what its LoraConfig names. What the base learns besides is "
            "lost when you save: the adapter then stands on another base than it was trained on.",
            "load the base and put the adapter on anew, without requires_grad_(True) after it; "
            f"what is to be trained in full ({', '.join(modules)}) belongs into "
            "LoraConfig(modules_to_save=[...])",
        )


def _part(name):
    """The part of a language model that a parameter belongs to, by its name."""
    parts = {"embed": "embedding", "lm_head": "output layer", "norm": "norms"}
    return next((part for mark, part in parts.items() if mark in name), "layers")


def _counted(names):
    return ", ".join(f"{name} ({count})" for name, count in Counter(names).items())


def _dtypes(trained):
    dtypes = [str(p.dtype).removeprefix("torch.") for p in trained.values()]
    if set(dtypes) != {"float32"}:
        yield Finding(
            "error" if "float16" in dtypes else "warning",
            f"trained parameters are not float32: {_counted(dtypes)}",
            "An update that is small beside its weight is rounded away in 16 bits, and a GPU "
            "without bfloat16 may fail at the first step.",
            "quirks.adapters_to_float32(trainer.model), after the trainer is built",
        )


def _new_rows(model):
    """Rows that resize_token_embeddings has added, where nothing trains them."""
    config = model.config.get_text_config()
    old, rows = stored.rows(model.config.name_or_path), config.vocab_size
    if old is None:
        return
    new, tables = set(range(old, rows)), [t for t in _tables(model) if t is not None]
    names = {id(module): last(name) for name, module in model.named_modules()}
    idle = [names[id(table)] for table in tables if not new <= _trained_rows(table, new)]
    if idle:
        indices = f"list(range({old}, {rows}))"
        if not config.tie_word_embeddings:
            named = ", ".join(f"{names[id(table)]!r}: {indices}" for table in tables)
            indices = f"{{{named}}}"
        yield warning(
            f"{rows - old} new rows of {' and '.join(idle)} are not trained",
            f"The base has {old} rows, this model {rows}. resize_token_embeddings fills the new "
            "ones with random numbers: a token that is to be read or said never learns better, and "
            "whoever loads the adapter gets other numbers.",
            f"LoraConfig(trainable_token_indices={indices}); for padding alone: nothing",
        )


def _tables(model):
    return model.get_input_embeddings(), model.get_output_embeddings()


def _trained_rows(table, new):
    if isinstance(table, TrainableTokensWrapper):
        indices = table.token_adapter.token_indices
        return {row for adapter in table.active_adapters for row in indices[adapter]}
    return new if any(p.requires_grad for p in table.parameters()) else set()


def tied(model):
    """An adapter on a table that is embedding and output layer at once."""
    names = {id(module): last(name) for name, module in model.named_modules()}
    on = [names[id(table)] for table in _tables(model) if isinstance(table, BaseTunerLayer)]
    if on and model.config.get_text_config().tie_word_embeddings:
        yield warning(
            f"the adapter sits on {' and '.join(on)}, and embedding and output layer are one table",
            "Beside its base it works. Merged, it changes both, also with ensure_weight_tying: the "
            "answers are others.",
            f"take it out of target_modules (to train the table, {TABLES}), or never merge",
        )
