"""Findings about what was given: every example is there, once, whole, with the text meant."""

import copy
import json
from collections import Counter

from trl.data_utils import is_conversational, maybe_convert_to_chatml

from qlora_kit.doctor.findings import Finding, ok, warning
from qlora_kit.doctor.masks import answers

# Columns that hold what a model is to read or say. TRL 1.16 takes the messages, or the prompt and
# the completion, or one text, and puts `tools` into the template.
COLUMNS = ("messages", "prompt", "completion", "text", "system", "instruction", "input", "context")


def examples(rows, given=None):
    """Findings about the examples. given: how many there were, or None."""
    # whoever writes a formatting_func chooses what it leaves out
    made = getattr(rows.trainer, "_formatting_func", None) is not None
    texts = _formatting(rows) if made else [*_compared(rows), *_left_out(rows)]
    return [*_together(rows), *dropped(rows, given), *_cut(rows), *texts]


def _together(rows):
    """Examples that share a row, and are cut by it or see each other."""
    chats = [e for e in rows.examples if answers(rows, e)]
    if _wrapped(rows) and chats:
        total = len(rows.examples)
        cut = f", and {rows.cut} of {total} are cut in two" if rows.cut else ""
        yield warning(
            f"examples see others of their row{cut}: the packing strategy is 'wrapped'",
            "It joins all to one stream and cuts that every max_length tokens. An answer then "
            "follows a conversation that it has nothing to do with, or half of its own.",
            "SFTConfig(packing_strategy='bfd')",
        )
    elif rows.mixed:
        yield warning(
            f"{rows.mixed} of {len(rows.examples)} examples see others of their row",
            "Several stand in one row, and nothing separates them: the positions do not begin anew "
            "with each.",
            "hand SFTTrainer one example a row and SFTConfig(packing=True): it packs them, and "
            "keeps them apart by their positions",
        )


def dropped(rows, given):
    """Whether as many examples are there as were given; `rows` is None if there is not one."""
    kept = len(rows.examples) if rows else 0
    limit = rows.limit if rows else None
    if given is None or kept >= given or (rows and _wrapped(rows) and not _borders(rows)):
        return
    if rows and rows.packing:
        why = "Packing leaves out what has no token. Or fewer were handed to the trainer."
        fix = "look for empty examples, and at the length of what was handed to the trainer"
    elif rows and limit is None:
        why = "Their mask is empty, and the trainer drops such an example without a word."
        fix = "look at the mask: the assistant's turns must be where it looks for them"
    else:
        why = (
            "Nothing would be learnt from them: the prompt alone reaches max_length, or the mask "
            "is empty. The trainer drops such an example without a word."
        )
        longest = max((len(ids) for ids in (rows and _expected(rows)) or []), default=0)
        length = longest if longest > (limit or 0) else "..."
        fix = f"raise SFTConfig(max_length={length}), shorten the prompts, or look at the mask"
    yield Finding(
        "warning" if kept else "error", f"{given - kept} of {given} examples were dropped", why, fix
    )


def _borders(rows):
    """Whether the template shows in a stream of tokens where an example begins."""
    return rows.form is not None and rows.form.once


def _wrapped(rows):
    return rows.packing and getattr(rows.trainer.args, "packing_strategy", "") == "wrapped"


def _cut(rows):
    """Examples that end at max_length in a prompt: an answer that followed is gone. One that ends
    in an answer lacks its end, and is counted there."""
    limit, tokenizer = rows.limit, rows.tokenizer
    if not limit:
        return
    cut = 0
    for example in rows.examples:
        found = answers(rows, example)
        if len(example.ids) != limit or not found:
            continue
        last = next((i for i in reversed(example.ids) if tokenizer.decode([i]).strip()), None)
        said = any(label != -100 for label in example.labels[found[-1].start :])
        closed = last in (rows.end, tokenizer.eos_token_id)
        cut += not closed and (found[-1].ended or not said)
    if cut:
        yield warning(
            f"{cut} of {len(rows.examples)} examples are cut off at max_length, {limit} tokens",
            "The end of a conversation is missing, and the answers in it are not learnt.",
            "raise SFTConfig(max_length=...), or leave out what is longer",
        )


def _expected(rows):
    """The tokens of each given example, as TRL 1.16 makes them before it cuts; None if another
    trainer has made the rows, or nothing was given."""
    if not rows.given or not hasattr(rows.trainer, "completion_only_loss"):
        return None
    return [_rendered(rows, example) for example in rows.given]


def _rendered(rows, example, text=None):
    """The tokens of an example, or of the `text` that was made of it."""
    tokenizer = rows.tokenizer
    if text is None and "input_ids" in example:
        return list(example["input_ids"])
    example = {name: value for name, value in example.items() if value is not None}
    example = maybe_convert_to_chatml(copy.deepcopy(example))
    if text is None and is_conversational(example):
        tools = example.get("tools")
        return tokenizer.apply_chat_template(
            example["messages"]
            if "prompt" not in example
            else example["prompt"] + example["completion"],
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            chat_template=getattr(rows.trainer, "chat_template", None),
            return_dict=True,
            **example.get("chat_template_kwargs", {}),
        )["input_ids"]
    if text is None:
        field = rows.trainer.args.dataset_text_field
        text = example.get("prompt", "") + example.get("completion", example.get(field, ""))
    eos = tokenizer.eos_token
    return tokenizer(text if text.endswith(eos) else text + eos)["input_ids"]


def _held(rows, expected):
    """For each list of tokens whether an example of the rows has them, whole or cut to max_length;
    and how many examples are left over."""
    left = Counter(tuple(example.ids) for example in rows.examples)
    there = []
    for ids in expected:
        forms = [tuple(ids), tuple(ids[: rows.limit]), tuple(ids[-(rows.limit or 0) :])]
        form = next((form for form in forms if left[form]), None)
        there.append(form is not None)
        left[form] -= 1
    return there, left


def _formatting(rows):
    """Whether what formatting_func makes is what the rows hold."""
    make = rows.trainer._formatting_func
    if rows.packing and rows.trainer.args.packing_strategy != "bfd":
        yield ok("whether formatting_func was used was not looked at: examples are cut in packing")
        return
    if rows.given:
        expected = [_rendered(rows, example, make(example)) for example in rows.given]
    elif rows.packing:
        yield ok(
            "whether formatting_func was used was not looked at: the rows are packed, and do not "
            "say. doctor.batch(trainer, given=dataset) compares them"
        )
        return
    else:
        expected = [
            _rendered(rows, {}, row.source["text"]) if "text" in row.source else []
            for row in rows.rows
        ]
    there, _ = _held(rows, expected)
    ignored = there.count(False)
    if ignored:
        columns = rows.given[0] if rows.given else rows.rows[0].source
        ready = "input_ids" in columns and "text" not in columns
        names = ("prompt", "messages", "conversations", rows.trainer.args.dataset_text_field)
        taken = "input_ids" if ready else next(name for name in names if name in columns)
        yield warning(
            f"formatting_func was ignored: {ignored} of {len(expected)} examples hold another text",
            f"TRL writes that text into a column `text`, and learns from `{taken}` all the same.",
            "dataset.map(lambda row: {'text': formatting_func(row)}, "
            "remove_columns=dataset.column_names), and hand that to the trainer without "
            "formatting_func or dataset_text_field",
        )


def _compared(rows):
    """Whether the given examples are in the rows, each as often as it was given."""
    expected = _expected(rows)
    if expected is None or (rows.packing and rows.trainer.args.packing_strategy != "bfd"):
        return
    there, left = _held(rows, expected)
    given = {tuple(ids) for ids in expected}
    twice = sum(number for ids, number in left.items() if number > 0 and ids in given)
    other = sum(number for ids, number in left.items() if number > 0 and ids not in given)
    if other:
        missing = rows.given[there.index(False)] if False in there else None
        yield warning(
            f"{other} of {len(rows.examples)} examples hold a text that was not given",
            "The template or the tokenizer was changed after the trainer was built, or the "
            f"trainer was handed other examples. Missing: {str(missing)[:80]}",
            "build the trainer anew, of these examples and with this tokenizer",
        )
    if twice:
        yield warning(
            f"{twice} of {len(rows.examples)} examples are there more often than they were given",
            "What stands in the rows twice is learnt twice.",
            "build the trainer of these examples alone",
        )


def _left_out(rows):
    """Texts of the examples that the rows do not hold: columns that nobody reads, roles and fields
    that the template does not write, and what was cut by whoever made the tokens."""
    tokenizer, missing, total = rows.tokenizer, Counter(), Counter()
    pairs = [(row.source, row.ids) for row in rows.rows]
    if rows.packing:
        pairs = zip(rows.given or [], _expected(rows) or [], strict=True)
    for source, ids in pairs:
        if rows.limit and len(ids) >= rows.limit:
            continue
        whole = _squeezed(tokenizer.decode(ids))
        for name, text in _texts(source):
            total[name] += 1
            again = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
            missing[name] += not any(_squeezed(form) in whole for form in (text, again))
    for name, number in missing.items():
        if number:
            yield warning(
                f"{name} is missing in {number} of {total[name]} examples that have it",
                "It is not among the tokens that the trainer learns from: the trainer does not "
                "read that column, the chat template does not write it, or it was cut off.",
                "write it into the content of a user's message, before the trainer is built, and "
                "remove what is not to be learnt",
            )


def _squeezed(text):
    return "".join(text.split())


def _texts(source):
    """The texts of an example's columns, each with a name."""
    for column in COLUMNS:
        value = source.get(column)
        if isinstance(value, str) and value:
            yield f"the column `{column}`", value
        for turn in value if isinstance(value, list) else []:
            for key, text in turn.items():
                if key != "role" and isinstance(text, str) and text:
                    part = "" if key == "content" else f" ({key})"
                    yield f"what the {turn.get('role')} says{part}", text
    tools = source.get("tools")
    for tool in json.loads(tools) if isinstance(tools, str) else tools or []:
        yield "a tool of the column `tools`", tool.get("function", tool)["name"]
