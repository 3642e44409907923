"""Findings about how examples begin: what is asked later, through the template, begins so too."""

from qlora_kit.doctor.findings import error, warning
from qlora_kit.doctor.templates import places

SHOWN = 6  # tokens of an opening in a finding


def openings(rows):
    """Findings about the openings of all examples, and what stands before their answers."""
    tokenizer = rows.tokenizer
    doubled, bare, other, foreign = [], [], [], []
    for example in _whole(rows):
        ids, bos = example.ids, tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            doubled.append(example)
        elif _begins(rows, ids):
            continue
        elif bos is not None and _begins(rows, [bos, *ids]):
            bare.append(example)
        elif is_foreign(rows, example):
            foreign.append(example)
        else:
            other.append(example)
    return [
        *_template_bos(rows),
        *_bos(rows, doubled, bare),
        *_foreign(rows, foreign),
        *_other(rows, other),
        *_systems(rows),
        *_asked(rows),
    ]


def is_foreign(rows, example):
    """Whether an example neither begins as the template does nor holds one of its answers."""
    ids, bos = example.ids, rows.tokenizer.bos_token_id
    begins = _begins(rows, ids) or _begins(rows, [bos, *ids])
    return rows.form is not None and not begins and not places(rows.form.header, ids)


def _whole(rows):
    """The examples that are known to begin where one was given to begin.

    The packing strategy "bfd_split" cuts long ones, and their rests look like any example.
    """
    split = getattr(rows.trainer.args, "packing_strategy", "") == "bfd_split" and rows.packing
    if split and any(len(example.ids) == rows.limit for example in rows.examples):
        return [example for example in rows.examples if len(example.ids) == rows.limit]
    return rows.examples


def _begins(rows, ids):
    """Whether tokens begin as a conversation does in the template, or a text without one."""
    if rows.form:
        return any(ids[: len(begin)] == begin[: len(ids)] for begin in rows.form.openings.values())
    begin = [i for i in rows.tokenizer("")["input_ids"] if i == rows.tokenizer.bos_token_id]
    return ids[: len(begin)] == begin


def _bos(rows, doubled, bare):
    token, total = rows.tokenizer.bos_token, len(rows.examples)
    if doubled:
        yield error(
            f"{len(doubled)} of {total} examples begin with {token} twice",
            "The text has it already, and the tokenizer adds another. The model has never seen "
            "two, and answers worse.",
            "hand the trainer chat messages instead of text; or tokenise the text of a template "
            "with add_special_tokens=False",
        )
    if bare:
        some = f"{len(bare)} of {total} examples do not begin with {token}"
        yield error(
            f"no example begins with {token}" if len(bare) == total else some,
            "The model has learnt to expect it: answers get worse without.",
            "hand the trainer chat messages instead of text, and it uses the template"
            if rows.form
            else "tokenise the texts with add_special_tokens=True",
        )


def _template_bos(rows):
    """A tokenizer that puts BOS before a text, and a template that writes none."""
    tokenizer, bos = rows.tokenizer, rows.tokenizer.bos_token_id
    if not rows.form or bos is None or tokenizer("x")["input_ids"][:1] != [bos]:
        return
    if not any(bos in begin for begin in rows.form.openings.values()):
        yield warning(
            f"the tokenizer puts {tokenizer.bos_token} before a text, the chat template does not",
            "The model has learnt to expect it at the start, and finds none in what the template "
            "writes, neither in training nor later.",
            'tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template, before the '
            "trainer is built",
        )


def _foreign(rows, foreign):
    if foreign:
        yield warning(
            f"{len(foreign)} of {len(rows.examples)} examples are not written in the tokenizer's "
            "chat template",
            f"They begin with {_text(rows, foreign[0].ids)}. Who asks later through the template "
            f"begins with {_text(rows, rows.form.openings['user'])}, which the model has not "
            "learnt.",
            'hand the trainer {"messages": [...]} instead of text; or set the template of these '
            "texts as tokenizer.chat_template, and save the tokenizer with the adapter",
        )


def _other(rows, other):
    if not other:
        return
    limit = rows.limit
    if limit and all(len(example.ids) == limit for example in other):
        yield warning(
            f"{len(other)} of {len(rows.examples)} examples have lost their beginning",
            f"They are longer than max_length, {limit} tokens, and truncation_mode keeps the end.",
            "raise SFTConfig(max_length=...), or leave out what is longer",
        )
        return
    yield warning(
        f"{len(other)} of {len(rows.examples)} examples do not begin as the chat template does",
        f"They begin with {_text(rows, other[0].ids)}, and what is asked later through the "
        f"template with {_text(rows, rows.form.openings['user'])}.",
        'hand the trainer {"messages": [...]}, so that the template writes all of it',
    )


def _text(rows, ids):
    return repr(rows.tokenizer.decode(ids[:SHOWN]))


def _systems(rows):
    """Two system texts in one example: the template writes one by itself, or was used twice."""
    shape, bos = rows.form, rows.tokenizer.bos_token_id
    if not shape or shape.openings.get("system") in (None, shape.openings.get("user")):
        return
    opening = shape.openings["system"]
    by_itself = rows.end in opening  # the template's own system text stands before the message
    header = opening[len(opening) - opening[::-1].index(rows.end) :] if by_itself else opening
    if bos not in shape.header:
        header = [token for token in header if token != bos]
    double = sum(
        sum(_opens_a_turn(rows, e.ids, place) for place in places(header, e.ids)) > 1
        for e in rows.examples
    )
    if double and by_itself:
        why = "The chat template writes one of its own before that of the messages."
        fix = "leave the system turns out of the messages, or the text out of the template"
    else:
        why = "A text that the template has written already was put into a message."
        fix = "give messages their bare texts, and the trainer the messages"
    if double:
        yield warning(
            f"{double} of {len(rows.examples)} examples hold two system texts",
            f"{why} The second may contradict the first.",
            fix,
        )


def _opens_a_turn(rows, ids, place):
    """Whether a turn may begin there: at the start, behind BOS, an end or a blank."""
    before = ids[place - 1]
    starts = place == 0 or before in (rows.end, rows.tokenizer.bos_token_id)
    return starts or not rows.tokenizer.decode([before]).strip()


def _asked(rows):
    """Answers in the rows that do not stand behind the whole generation prompt."""
    shape = rows.form
    if not shape or len(shape.asked) == len(shape.header):
        return
    answers = sum(len(places(shape.header, e.ids)) for e in rows.examples)
    without = answers - sum(len(places(shape.asked, e.ids)) for e in rows.examples)
    if without:
        rest = rows.tokenizer.decode(shape.asked[len(shape.header) :]).strip()
        yield warning(
            f"{without} of {answers} answers do not stand behind the whole generation prompt",
            f"It ends in {rest!r} when an answer is asked for, and in training it does not: the "
            "model is asked in a way that it has not learnt.",
            f"let the chat template write {rest!r} before every assistant text too, or take it out "
            "of its generation prompt",
        )
