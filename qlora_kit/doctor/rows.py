"""The rows of a trainer as it learns from them: labelled by its collator, split into examples."""

import itertools
from dataclasses import dataclass, field

import torch

from qlora_kit.doctor.templates import Form, form, places, turn_end

CHATS = ("messages", "conversations", "prompt")  # columns that TRL prefers to a text


@dataclass
class Example:
    """One example: its tokens, their labels, and its columns where the row holds it alone."""

    ids: list
    labels: list
    source: dict = field(default_factory=dict)

    @property
    def learnt(self):
        """Whether a token of it has a label. The first one never counts: nothing precedes it."""
        return any(label != -100 for label in self.labels[1:])


@dataclass
class Rows:
    """All that the checks of a batch look at.

    rows: an Example each, whole. examples: the rows split where an example begins, as the trainer
    says (`seq_lengths`) or the template shows. cut: how many of them go on in the next row. mixed:
    how many see others of their row, since positions do not begin anew with them. given: what the
    trainer was handed, a list of dictionaries, or None. form: the template's, or None; end: the id
    of the token that ends an answer.
    """

    trainer: object
    tokenizer: object
    form: Form | None
    end: int | None
    given: list | None
    rows: list
    examples: list
    cut: int
    mixed: int

    @property
    def packing(self):
        return bool(getattr(self.trainer.args, "packing", False))

    @property
    def limit(self):
        """The length that TRL cuts at, None if it does not."""
        return getattr(self.trainer.args, "max_length", None)

    def chat(self, example):
        """Whether an example was a conversation, and no text in which everything is meant.

        A packed row does not say. TRL puts eos behind a text, so what ends as the template does
        was a conversation.
        """
        if getattr(self.trainer, "_formatting_func", None):
            return False
        if self.given or not self.packing:
            source = self.given[0] if self.given else example.source
            return any(source.get(name) for name in CHATS)
        bare = [i for i in example.ids if self.tokenizer.decode([i]).strip()]
        tail = self.form.tail if self.form else []
        return bool(tail) and bare[-len(tail) :] == tail


def read(trainer, tokenizer, raw, given=None):
    """The Rows of raw rows (dictionaries). Raises what the trainer's collator raises."""
    shape = form(tokenizer) if tokenizer else None
    rows, all_positions = [], []
    for row, (ids, labels, positions) in zip(raw, _collated(trainer, raw), strict=True):
        rows.append(Example(ids, labels, row))
        all_positions.append(positions)
    packing = getattr(trainer.args, "packing", False)
    examples, mixed = [], 0
    for row, positions in zip(rows, all_positions, strict=True):
        starts = _starts(row, shape)
        if any(positions is None or positions[start] for start in starts[1:]):
            mixed += len(starts)
        examples += _parts(row, starts)
    cut = 0
    if packing and not any(row.source.get("seq_lengths") for row in rows):
        examples, cut = _stream(rows, shape)
    end = turn_end(tokenizer) if tokenizer else None
    return Rows(trainer, tokenizer, shape, end, given, rows, examples, cut, mixed)


def _collated(trainer, raw):
    """The ids, labels and positions of each row, without padding.

    Random numbers stay as they are: a collator may draw some.
    """
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    with torch.random.fork_rng(devices=[]):
        for row in raw:
            batch = collate([row])
            ids = torch.as_tensor(batch["input_ids"]).flatten()
            mask = batch.get("attention_mask")
            real = torch.ones_like(ids) if mask is None else torch.as_tensor(mask).flatten()
            columns = [ids, batch["labels"], batch.get("position_ids")]
            yield [
                None if column is None else torch.as_tensor(column).flatten()[real != 0].tolist()
                for column in columns
            ]


def _starts(row, shape):
    """Where the examples of a row begin. A new one needs an answer in the one before."""
    if row.source.get("seq_lengths"):
        return [0, *itertools.accumulate(row.source["seq_lengths"])][:-1]
    starts = [0]
    if shape and shape.once:
        headers = places(shape.header, row.ids)
        begins = {i for opening in shape.openings.values() for i in places(opening, row.ids)}
        for begin in sorted(begins):
            if any(starts[-1] <= header < begin for header in headers):
                starts.append(begin)
    return starts


def _parts(row, starts):
    stops = [*starts[1:], len(row.ids)]
    source = row.source if len(starts) == 1 else {}
    parts = zip(starts, stops, strict=True)
    return [Example(row.ids[i:j], row.labels[i:j], source) for i, j in parts]


def _stream(rows, shape):
    """The examples of rows that are one stream, cut at max_length ("wrapped" packing), and how many
    of them go on in the next row."""
    ids = [token for row in rows for token in row.ids]
    joined = Example(ids, [label for row in rows for label in row.labels])
    starts = _starts(joined, shape)
    edges = set(itertools.accumulate(len(row.ids) for row in rows))
    stops = [*starts[1:], len(ids)]
    cut = sum(any(i < edge < j for edge in edges) for i, j in zip(starts, stops, strict=True))
    return _parts(joined, starts), cut
