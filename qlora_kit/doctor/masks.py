"""Findings about the labels: only answers are learnt, each of them, whole and with its end."""

import itertools
from dataclasses import dataclass

from qlora_kit.doctor.findings import Finding, warning
from qlora_kit.doctor.ids import free_token
from qlora_kit.doctor.openings import is_foreign
from qlora_kit.doctor.templates import places


@dataclass(frozen=True)
class Answer:
    """An answer in an example: where its turn is opened, where its text begins behind blanks, and
    where it stops: behind its end, if it has one."""

    turn: int
    start: int
    stop: int
    ended: bool


def answers(rows, example):
    """Every Answer of an example, found by what the template writes before one."""
    if not rows.form:
        return []
    ids, size = example.ids, len(rows.form.header)
    turns = places(rows.form.header, ids)
    found = []
    for turn, following in itertools.zip_longest(turns, turns[1:]):
        start = turn + size
        limit = len(ids) if following is None else following + 1  # a header may begin with an end
        ended = rows.end in ids[start:limit]
        stop = ids.index(rows.end, start) + 1 if ended else limit
        while start < stop - ended and _is_blank(rows, ids[start]):
            start += 1
        found.append(Answer(turn, start, stop, ended))
    return found


def _is_blank(rows, token):
    return not rows.tokenizer.decode([token]).strip()


def asked_for(rows, example):
    """The answers of an example that are to be learnt.

    Those in a prompt are not (TRL, prompt and completion): what comes before the first label.
    """
    found = answers(rows, example)
    if getattr(rows.trainer, "completion_only_loss", False):
        found = [a for a in found if any(i != -100 for i in example.labels[: a.stop])]
    return found


def count(rows):
    """How many tokens there are of each kind, and how many of these are learnt.

    A dictionary of (learnt, all): "answers" without their ends, "ends", and the "rest", which is
    prompts and what the template writes.
    """
    kinds = {"answers": [], "ends": [], "rest": []}
    for example in rows.examples:
        learnt = [label != -100 for label in example.labels]
        kind = ["rest"] * len(learnt)
        for answer in answers(rows, example):
            kind[answer.start : answer.stop] = ["answers"] * (answer.stop - answer.start)
            if answer.ended:
                kind[answer.stop - 1] = "ends"
        for name, yes in zip(kind, learnt, strict=True):
            kinds[name].append(yes)
    return {name: (sum(all_of_it), len(all_of_it)) for name, all_of_it in kinds.items()}


def masks(rows):
    """Findings about the labels of rows."""
    pairs = [(e, a) for e in rows.examples if e.learnt for a in asked_for(rows, e)]
    return [*blank(rows), *_ends(rows, pairs), *_answers(rows, pairs), *_prompts(rows)]


def blank(rows):
    """Whether something is learnt from each row, and from each example."""
    held, noun = rows.rows, "rows"
    if all(row.learnt for row in held):
        held, noun = rows.examples, "examples"
    without = sum(not example.learnt for example in held)
    if without:
        yield Finding(
            "error" if without == len(held) else "warning",
            f"nothing is learnt from {without} of {len(held)} {noun}: every label is -100",
            "They cost the time of a step and teach nothing; if a whole batch is so, its loss is "
            "no number.",
            "look at the mask: the completion must survive max_length, and the assistant's turns "
            "must be where the mask looks for them",
        )


def _ends(rows, pairs):
    """Whether each answer has its end with a label; where none is recognised, each example."""
    end, tokenizer = rows.end, rows.tokenizer
    if end is None:
        return
    whole = [e for e in rows.examples if e.learnt and not answers(rows, e)]
    whole = [e for e in whole if not is_foreign(rows, e)]  # told already
    endless = [e for e in whole if end not in e.labels]
    endless += [
        e for e, a in pairs if _said(e, a) and (not a.ended or e.labels[a.stop - 1] == -100)
    ]
    total = len(whole) + len(pairs)
    if not endless:
        return
    token, length = tokenizer.convert_ids_to_tokens(end), rows.limit
    noun = "rows" if total == len(rows.rows) == len(rows.examples) else "answers"
    cut = sum(len(e.ids) == length for e in endless)
    marked = getattr(rows.trainer.args, "assistant_only_loss", False)
    if tokenizer.pad_token_id == end and all(end in e.ids for e in endless):
        why = (
            f"{token} is the padding token too, and the collator takes padding out of the "
            "loss, the true end of each answer with it. "
        )
        fix = f"{free_token(rows)}, before the trainer is built: padding needs a token of its own"
    elif cut == len(endless):
        why = f"max_length cuts them off at {length} tokens. "
        fix = "raise SFTConfig(max_length=...), or leave out what is longer"
    elif marked and not whole and len(endless) == total and not cut:
        why = "The template writes it outside of {% generation %} ... {% endgeneration %}. "
        fix = f"put {token} before {{% endgeneration %}} in the chat template"
    elif all(end in e.ids for e in endless):
        why = "It is there, and its label is -100. "
        fix = f"let the mask of each answer hold {token} as well"
    else:
        why = f"max_length cuts off {cut} of them. " if cut else ""
        fix = f"let the template close the answer with {token}, before max_length cuts it"
    yield Finding(
        "error" if len(endless) == total else "warning",
        f"the stop token {token} is not learnt in {len(endless)} of {total} {noun}",
        f"{why}What is not learnt is not said: the answers would run on.",
        fix,
    )


def _said(example, answer):
    """Whether something of an answer is learnt, be it an empty one's end."""
    return any(label != -100 for label in example.labels[answer.start : answer.stop])


def _answers(rows, pairs):
    """Whether each answer has a text, and all of it is learnt."""
    contents = [e.labels[a.start : a.stop - a.ended] for e, a in pairs]
    empty = sum(a.ended and not content for content, (_, a) in zip(contents, pairs, strict=True))
    silent = sum(bool(content) and set(content) == {-100} for content in contents)
    partly = sum(-100 in content and set(content) != {-100} for content in contents)
    for number, what, why, fix in (
        (
            empty,
            "are empty",
            "The model learns to end its turn at once.",
            "leave these examples out, or write the answers",
        ),
        (
            silent,
            "are not learnt",
            "Every label of theirs is -100: the mask finds other answers of the same example.",
            'hand the trainer {"messages": [...]} with SFTConfig(assistant_only_loss=True), and a '
            "template that marks every assistant turn with {% generation %}",
        ),
        (
            partly,
            "are learnt in part",
            "Some of their tokens have the label -100, so that no whole answer is learnt.",
            "let the mask hold an answer from its first token to its end",
        ),
    ):
        if number:
            yield warning(f"{number} of {len(pairs)} answers {what}", why, fix)


def _prompts(rows):
    """Whether tokens are learnt that no assistant says. What follows an answer up to the next turn
    does not count (a newline, eos), nor do the tokens by which the template opens one."""
    questions = said = learnt = 0
    for example in rows.examples:
        found = answers(rows, example)
        if not found or not _masked(rows, example):
            continue
        marks = [label != -100 for label in example.labels]
        learnt += sum(marks)
        said += sum(sum(marks[answer.start : answer.stop]) for answer in found)
        last = len(example.ids)
        for answer in found:
            stop = answer.stop
            while stop < last and _between_turns(rows, example.ids[stop]):
                stop += 1
            marks[answer.turn : stop] = [False] * (stop - answer.turn)
        questions += sum(marks[1:])
    if questions:
        yield warning(
            f"prompts are learnt too: {learnt - said:,} of {learnt:,} learnt tokens are no "
            "answer's",
            "The model learns to write the questions as well, and what it learns of the answers is "
            "a small part of each step.",
            'SFTConfig(assistant_only_loss=True) for {"messages": [...]}, with a template that '
            "marks the assistant's turns with {% generation %}; or hand the trainer "
            '{"prompt": [...], "completion": [...]}',
        )


def _masked(rows, example):
    """Whether an example is meant to have masked tokens. In a text all may be meant: then none is
    masked but the end, which may be padding."""
    labels = zip(example.ids[1:], example.labels[1:], strict=True)
    hidden = {token for token, label in labels if label == -100}
    return rows.chat(example) or bool(hidden - {rows.end, rows.tokenizer.pad_token_id})


def _between_turns(rows, token):
    return token in (rows.tokenizer.eos_token_id, rows.end) or _is_blank(rows, token)
