"""Findings about what a trainer will learn from, token by token."""

import itertools

from torch.utils.data import IterableDataset

from qlora_kit.doctor.findings import Finding, error, ok, warning
from qlora_kit.scoring.generation import stop_tokens

STREAMED = 100  # how many rows of a stream are looked at: it may have no end


def batch(trainer, given=None):
    """Findings about the rows of a trainer, labelled by its own collator.

    given: how many examples it was handed, to see whether some were dropped.
    Of a stream (an IterableDataset) the first 100 rows are looked at. They are read anew for the
    training, which begins at the beginning; a stream that can be read only once is left alone.
    """
    data = trainer.train_dataset
    if hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return _findings(trainer, [data[i] for i in range(len(data))], given)
    stream = iter(data)
    if stream is data:
        return [_once()]
    rows = list(itertools.islice(stream, STREAMED + 1))
    if len(rows) <= STREAMED:
        return _findings(trainer, rows, given)
    seen = ok(f"the training data are a stream: its first {STREAMED} rows were looked at")
    return [*_findings(trainer, rows[:STREAMED]), seen]


def _once():
    return warning(
        "the rows were not looked at: they are a stream that can be read only once",
        "What the doctor reads would be missing in the training.",
        "hand the trainer a datasets.IterableDataset, which begins anew each time",
    )


def _findings(trainer, rows, given=None):
    starts = [start for row in rows for start in _starts(row)]
    found = [*_dropped(given, len(starts))]
    if rows:
        tokenizer = trainer.processing_class
        found += [*_bos(tokenizer, starts), *_labels(trainer, tokenizer, rows)]
        found += [*_stops(trainer.model, tokenizer), *_lengths(trainer, rows)]
    return found


def _starts(row):
    """The first two tokens of each example in a row; a packed row holds several."""
    start, found = 0, []
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        found.append(list(row["input_ids"][start : start + min(2, length)]))
        start += length
    return found


def _dropped(given, kept):
    if given is not None and kept < given:
        yield Finding(
            "warning" if kept else "error",
            f"{given - kept} of {given} examples were dropped",
            "Nothing would be learnt from them: the prompt alone reaches max_length, or the mask "
            "is empty. The trainer drops such an example without a word.",
            "raise SFTConfig(max_length=...), shorten the prompts, or look at the mask",
        )


def _bos(tokenizer, starts):
    """BOS as the template means it: it may open every turn (SmolLM2's does), or be written once."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    doubled = sum(start == [bos, bos] for start in starts)
    wanted = _ids(tokenizer, [{"role": "user", "content": "x"}])[:1] == [bos]
    if doubled:
        yield error(
            f"{doubled} of {len(starts)} examples begin with {tokenizer.bos_token} twice",
            "The text has it already, and the tokenizer adds another. The model has never seen "
            "two, and answers worse.",
            "hand the trainer chat messages instead of text; or tokenise the text of a template "
            "with add_special_tokens=False",
        )
    elif wanted and not any(start[:1] == [bos] for start in starts):
        yield error(
            f"no example begins with {tokenizer.bos_token}",
            "The model has learnt to expect it: answers get worse without.",
            "hand the trainer chat messages instead of text, and it uses the template",
        )


def _ids(tokenizer, turns):
    """The tokens of some turns as the template writes them; without one, as plain text."""
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    return tokenizer(" ".join(turn["content"] for turn in turns))["input_ids"]


def turn_end(tokenizer):
    """The id of the token that ends an answer in the template, such as <|im_end|>; else eos.

    Blanks after it do not count (Gemma's turns end in a newline, which is an added token there).
    """
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    answer = _ids(tokenizer, turns)[len(_ids(tokenizer, turns[:1])) :]
    last = next((token for token in reversed(answer) if tokenizer.decode([token]).strip()), None)
    of_its_own = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return last if last in of_its_own - {tokenizer.unk_token_id} else tokenizer.eos_token_id


def _labels(trainer, tokenizer, rows):
    end, blank, endless = turn_end(tokenizer), 0, 0
    for row in rows:
        labels = trainer.data_collator([row])["labels"].flatten().tolist()
        blank += set(labels) == {-100}
        endless += set(labels) != {-100} and end not in labels
    if blank:
        yield Finding(
            "error" if blank == len(rows) else "warning",
            f"nothing is learnt from {blank} of {len(rows)} rows: every label is -100",
            "They cost the time of a step and teach nothing; if a whole batch is so, its loss is "
            "no number.",
            "look at the mask: the completion must survive max_length, and the assistant's turns "
            "must be where the mask looks for them",
        )
    if endless:
        token = tokenizer.convert_ids_to_tokens(end)
        why, fix = "", f"let the template close the answer with {token}, before max_length cuts it"
        if tokenizer.pad_token_id == end:
            why = (
                f"{token} is the padding token too, and the collator takes padding out of the "
                "loss, the true end of each answer with it. "
            )
            fix = "give padding a token of its own, one that is not used: tokenizer.pad_token = ..."
        yield Finding(
            "error" if endless + blank == len(rows) else "warning",
            f"the stop token {token} is not learnt in {endless} of {len(rows)} rows",
            f"{why}What is not learnt is not said: the answers would run on.",
            fix,
        )


def _stops(model, tokenizer):
    end, stops = turn_end(tokenizer), stop_tokens(model)
    if end not in stops:
        yield error(
            f"generation does not stop at {tokenizer.convert_ids_to_tokens(end)}",
            "The template ends an answer with it. Generation waits for another token, and writes "
            "the user's next turn as well.",
            f"model.generation_config.eos_token_id = {sorted({end, *stops})}",
        )


def _lengths(trainer, rows):
    context = getattr(trainer.model.config, "max_position_embeddings", None)
    for make, what, limit in (
        (warning, "max_length", getattr(trainer.args, "max_length", None)),
        (error, "the model's context", context),
    ):
        long = sum(len(row["input_ids"]) > limit for row in rows) if limit else 0
        if long:
            yield make(
                f"{long} of {len(rows)} rows are longer than {what}, {limit} tokens",
                "Memory grows with the longest row, and beyond its context a model has learnt no "
                "positions.",
                "cut or pack the rows to max_length before training",
            )
