"""Findings about what a trainer will learn from, token by token."""

import itertools
import textwrap

from torch.utils.data import IterableDataset

from qlora_kit.doctor.examples import dropped, examples
from qlora_kit.doctor.findings import ok, warning
from qlora_kit.doctor.ids import lengths, stops, tables
from qlora_kit.doctor.masks import blank, count, masks
from qlora_kit.doctor.openings import openings
from qlora_kit.doctor.rows import read
from qlora_kit.doctor.templates import turn_end

__all__ = ["batch", "tokens", "turn_end"]

STREAMED = 100  # how many rows of a stream are looked at: it may have no end


def batch(trainer, given=None):
    """Findings about the rows of a trainer, labelled by its own collator.

    given: the examples that it was handed (a list of dictionaries or a data set), or how many they
    were. With the examples, the rows' texts are compared with theirs.
    Of a stream (an IterableDataset) the first 100 rows are looked at. They are read anew for the
    training, which begins at the beginning; a stream that can be read only once is left alone.
    What cannot be looked at is said in a line of the level ok.
    """
    data = trainer.train_dataset
    if data is None:
        return [ok("the rows were not looked at: the trainer has none")]
    if hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return _findings(trainer, [data[i] for i in range(len(data))], given)
    stream = iter(data)
    if stream is data:
        return [_once()]
    raw = list(itertools.islice(stream, STREAMED + 1))
    if len(raw) <= STREAMED:
        return _findings(trainer, raw, given)
    seen = ok(f"the training data are a stream: its first {STREAMED} rows were looked at")
    return [*_findings(trainer, raw[:STREAMED]), seen]


def tokens(trainer):
    """How many tokens of each kind a trainer's rows hold, and how many of these are learnt.

    A dictionary of pairs (learnt, all): "answers" without their ends, "ends", and the "rest", which
    is prompts and what the template writes. All is rest where no template shows the answers.
    """
    data = trainer.train_dataset
    raw = [data[i] for i in range(len(data))]
    return count(read(trainer, _tokenizer(trainer), raw))


def _once():
    return warning(
        "the rows were not looked at: they are a stream that can be read only once",
        "What the doctor reads would be missing in the training.",
        "hand the trainer a datasets.IterableDataset, which begins anew each time",
    )


def _tokenizer(trainer):
    """The tokenizer, be it in a processor; None if there is none."""
    found = getattr(trainer, "processing_class", None)
    found = getattr(found, "tokenizer", found)
    return found if hasattr(found, "convert_ids_to_tokens") else None


def _findings(trainer, raw, given=None):
    tokenizer = _tokenizer(trainer)
    handed = None if given is None or isinstance(given, int) else [*given]
    number = given if handed is None else len(handed)
    if not raw:
        return [*dropped(None, number)]
    try:
        rows = read(trainer, tokenizer, raw, handed)
    except Exception as problem:  # a collator is anybody's
        return [_unread(problem)]
    found = [*tables(rows), *lengths(rows)]
    if not tokenizer:
        return [*found, *blank(rows), ok("texts were not looked at: the trainer has no tokenizer")]
    if tokenizer.chat_template and not rows.form:
        found.append(ok("answers were not looked for: the chat template shows no prompt for one"))
    for what, check in (
        ("openings", lambda: openings(rows)),
        ("examples", lambda: examples(rows, number)),
        ("labels", lambda: masks(rows)),
        ("stop tokens", lambda: stops(rows)),
    ):
        try:
            found += check()
        except Exception as problem:  # a template or formatting_func is, too
            found.append(ok(f"the {what} were not looked at: {_name(problem)}"))
    return found


def _unread(problem):
    return warning(
        f"the rows were not looked at: {_name(problem)}",
        "The trainer's collator makes no batch of input_ids and labels from a row.",
        "trainer.data_collator([trainer.train_dataset[0]]) shows it: give the trainer a collator "
        "and rows that fit together",
    )


def _name(problem):
    return textwrap.shorten(f"{type(problem).__name__}: {problem}", 120)
