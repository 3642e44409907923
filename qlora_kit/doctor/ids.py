"""Findings about token ids: they fit the model's tables, and generation stops at the right one."""

from qlora_kit.doctor.findings import error, warning
from qlora_kit.scoring.generation import stop_tokens


def tables(rows):
    """Whether every id that a batch can hold has a row in the embedding and in the output layer."""
    model, tokenizer = rows.trainer.model, rows.tokenizer
    size = _size(model)
    padding = getattr(rows.trainer.data_collator, "pad_token_id", None)
    if padding is None and tokenizer:
        padding = tokenizer.pad_token_id
    used = {token for row in rows.rows for token in row.ids}
    beyond = sorted(token for token in used if token >= size)
    if padding is not None and padding >= size and padding not in used:
        yield _pad(rows, padding, size)
    if beyond:
        names = tokenizer.convert_ids_to_tokens(beyond[:3]) if tokenizer else beyond[:3]
        yield error(
            f"{len(beyond)} tokens of the rows lie beyond the model's table of {size} rows, such "
            f"as {', '.join(map(str, names))}",
            "They were added to the tokenizer and not to the model: the first batch that holds one "
            "stops with an IndexError, on a GPU with a device-side assert.",
            f"model.resize_token_embeddings({max(beyond) + 1}) before the trainer is built, and "
            f"LoraConfig({_trained(model)}), or the new rows stay random",
        )


def _size(model):
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return min(layer.weight.shape[0] for layer in layers if layer is not None)


def _trained(model):
    """The arguments that train both tables. `trainable_token_indices` is less, but on a tied table
    TRL 1.16 stops with an AttributeError, and on two it leaves the output layer's rows random."""
    read, said = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name.rpartition(".")[2] for name, module in model.named_modules()}
    if said is None or said.weight is read.weight:
        return f"modules_to_save=[{names[read]!r}], ensure_weight_tying=True"
    return f"modules_to_save=[{names[read]!r}, {names[said]!r}]"


def _pad(rows, padding, size):
    if rows.tokenizer:
        name = f" ({rows.tokenizer.convert_ids_to_tokens(padding)})"
        fix = f"{free_token(rows)}, before the trainer is built"
    else:
        name, fix = "", f"model.resize_token_embeddings({padding + 1})"
    return error(
        f"padding is token {padding}{name}, and the model's table has {size} rows",
        "The first batch with rows of different lengths stops with an IndexError, on a GPU with a "
        "device-side assert.",
        fix,
    )


def free_token(rows):
    """What gives padding a token that has a row and stands in no example, in Python."""
    tokenizer, size = rows.tokenizer, _size(rows.trainer.model)
    used = {token for row in rows.rows for token in row.ids}
    used |= {rows.end, tokenizer.eos_token_id, tokenizer.bos_token_id}
    for token in [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]:
        if token < size and token not in used:
            return f"tokenizer.pad_token = {tokenizer.convert_ids_to_tokens(token)!r}"
    return (
        'tokenizer.add_special_tokens({"pad_token": "[PAD]"}) and '
        "model.resize_token_embeddings(len(tokenizer))"
    )


def stops(rows):
    """Whether generation stops where the template ends an answer."""
    end, ends = rows.end, stop_tokens(rows.trainer.model)
    if end is not None and end not in ends:
        yield error(
            f"generation does not stop at {rows.tokenizer.convert_ids_to_tokens(end)}",
            "The template ends an answer with it. Generation waits for another token, and writes "
            "the user's next turn as well.",
            f"model.generation_config.eos_token_id = {sorted({end, *ends})}",
        )


def lengths(rows):
    """Whether rows are longer than they should be."""
    context = getattr(rows.trainer.model.config, "max_position_embeddings", None)
    for make, what, limit in (
        (warning, "max_length", rows.limit),
        (error, "the model's context", context),
    ):
        long = sum(len(row.ids) > limit for row in rows.rows) if limit else 0
        if long:
            yield make(
                f"{long} of {len(rows.rows)} rows are longer than {what}, {limit} tokens",
                "Memory grows with the longest row, and beyond its context a model has learnt no "
                "positions.",
                "cut or pack the rows to max_length before training",
            )
