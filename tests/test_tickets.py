"""The data and its loader."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys

import pytest

from qlora_kit.data import tickets
from qlora_kit.errors import KitError
from qlora_kit.paths import DATA

GOOD = {"ticket": "It leaks.", "category": "repair", "priority": "normal", "reply": "Sorry."}


def load(tmp_path, *lines, **arguments):
    path = tmp_path / "mine.jsonl"
    rows = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else r.encode() for r in rows))
    return tickets.load(path, **arguments)


def test_good_rows_come_back_with_their_lines(tmp_path, capsys):
    rows = load(tmp_path, GOOD, "", GOOD | {"ticket": " It smokes. "})
    assert [row.where for row in rows] == ["mine.jsonl:1", "mine.jsonl:3"]
    assert rows[1].ticket == "It smokes."
    assert rows[1].label == "repair, normal"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "bad, says",
    [
        ('{"ticket": "It le', "not JSON"),
        (b'{"ticket": "\xff"}', "not UTF-8"),
        ("[1]", "a JSON list, not an object"),
        ({k: v for k, v in GOOD.items() if k != "reply"}, "'reply' is missing"),
        (GOOD | {"ticket": "  "}, "'ticket' is empty"),
        (GOOD | {"ticket": 7}, "'ticket' is not text but int"),
        (GOOD | {"reply": None}, "'reply' is not text but NoneType"),
        (GOOD | {"facts": "repair.days"}, "'facts' is not a list of texts"),
        (GOOD | {"facts": ["repair.days", 8]}, "'facts' is not a list of texts"),
        (GOOD | {"facts": ["repair.days", "repair.years"]}, "unknown fact 'repair.years'"),
        (GOOD | {"facts": ["repair.days"] * 2}, "'facts' names a fact twice"),
        (GOOD | {"category": "Repair"}, "unknown category 'Repair'; known are billing"),
        (GOOD | {"priority": "asap"}, "unknown priority 'asap'; known are urgent"),
        (GOOD | {"ticket": "IT LEAKS."}, "the same ticket stands at mine.jsonl:1 already"),
    ],
)
def test_a_bad_row_is_reported_with_file_and_line(tmp_path, capsys, bad, says):
    rows = load(tmp_path, GOOD, bad, facts=("repair.days", "repair.cost"))
    out = capsys.readouterr().out
    assert len(rows) == 1
    assert "mine.jsonl: 1 of 2 rows are left out:" in out
    assert re.search(r"mine\.jsonl:2: .*" + re.escape(says), out)


def test_a_row_may_name_the_facts_that_its_reply_states(tmp_path):
    none, empty = GOOD | {"ticket": "It smokes.", "facts": []}, GOOD | {"ticket": "It rusts."}
    rows = load(tmp_path, GOOD | {"facts": ["repair.days", "mine"]}, none, empty)
    assert [row.facts for row in rows] == [("repair.days", "mine"), (), None]


def test_a_row_that_is_too_long_for_the_model_is_reported(tmp_path, capsys, smollm2):
    _, tokenizer = smollm2
    long = GOOD | {"ticket": "It leaks. " * 100}
    rows = load(tmp_path, GOOD, long, tokenizer=tokenizer, max_length=128)
    assert len(rows) == 1
    assert "at most 128 fit" in capsys.readouterr().out


def test_categories_of_ones_own(tmp_path):
    [row] = load(tmp_path, GOOD | {"category": "bug"}, categories=("bug", "praise"))
    assert row.category == "bug"


def test_a_file_without_a_usable_row_and_a_missing_file(tmp_path):
    with pytest.raises(KitError, match="no usable row"):
        load(tmp_path, "")
    with pytest.raises(KitError, match="cannot be read"):
        tickets.load(tmp_path / "none.jsonl")


def said(example):
    """What the assistant says, turn by turn."""
    return [turn["content"] for turn in example["messages"] if turn["role"] == "assistant"]


def test_an_example_files_the_ticket_and_on_request_answers_it(tmp_path):
    [row] = load(tmp_path, GOOD)
    named = dataclasses.replace(row, facts=("repair.warranty", "repair.days"))
    assert said(named.example()) == ["repair, normal\nrepair.warranty, repair.days"]
    both = named.example(with_reply=True)
    assert said(both) == [*said(named.example()), "Sorry."]
    assert both["messages"][:3] == named.example()["messages"]
    assert both["messages"][:-1] == tickets.reply_prompt(named.ticket, named.filing)
    assert said(dataclasses.replace(row, facts=()).example()) == ["repair, normal\nnone"]
    assert said(row.example()) == ["repair, normal"]  # it does not say what its reply needs


def test_a_filing_is_a_label_and_the_names_of_facts():
    filing = "app, low\nb, a, b\nand more"
    assert tickets.label_of(filing) == "app, low"
    assert tickets.facts_of(filing) == ["b", "a"]
    for nothing in ("app, low", "app, low\nnone", "", "app, low\n"):
        assert tickets.facts_of(nothing) == []


def test_an_open_book_gives_the_sentences_of_the_facts_that_are_named(tmp_path):
    [row] = load(tmp_path, GOOD)
    policy = {"a": "It is free.", "b": "It takes a day.", "c": "It is free."}
    for filing, rules in (
        ("app, low\nb, a, c, unknown", "\nOur rules: It takes a day. It is free."),
        ("app, low\nnone", ""),
        ("anything", ""),
    ):
        *before, request = tickets.reply_prompt("Help!", filing, policy)
        assert request["content"] == tickets.REPLY_REQUEST + rules
        assert before == tickets.reply_prompt("Help!", filing)[:-1]
    named = dataclasses.replace(row, facts=("a",))
    turns = named.example(with_reply=True, policy=policy)["messages"]
    assert turns[:-1] == tickets.reply_prompt(named.ticket, named.filing, policy)
    assert said(named.example(with_reply=True)) == [turns[2]["content"], turns[4]["content"]]


def test_what_a_ticket_teaches_depends_on_what_its_reply_says(tmp_path):
    [own] = load(tmp_path, GOOD)
    taught = {}
    for facts in (None, ("repair.warranty",), ()):
        rows = [dataclasses.replace(own, facts=facts)] * 4
        made = tickets.examples(rows, promise_every=3)
        taught[facts] = [len(said(example)) - 1 for example in made]
    assert taught == {None: [1] * 4, ("repair.warranty",): [1] * 4, (): [1, 0, 0, 1]}


@pytest.fixture(scope="module")
def sets():
    names = ("train", "dev", "test")
    return {name: tickets.load(DATA / f"tickets_{name}.jsonl") for name in names}


def test_the_sets_have_their_sizes_and_every_row_is_good(sets):
    assert {name: len(rows) for name, rows in sets.items()} == {
        "train": 2000,
        "dev": 260,
        "test": 240,
    }


def test_every_category_and_priority_occurs_in_every_set(sets):
    for rows in sets.values():
        assert {row.category for row in rows} == set(tickets.CATEGORIES)
        assert {row.priority for row in rows} == set(tickets.PRIORITIES)


def sentences(rows):
    """Sentences of four words or more, without case and punctuation."""
    found = set()
    for row in rows:
        for sentence in re.split(r"[.!?]", row.ticket.casefold()):
            words = re.findall(r"[a-z0-9']+", sentence)
            if len(words) >= 4:
                found.add(" ".join(words))
    return found


def test_no_held_out_sentence_is_in_another_set(sets):
    train, dev, test = (sentences(sets[name]) for name in ("train", "dev", "test"))
    assert not train & test
    assert not train & dev
    assert not dev & test


def test_the_generator_writes_the_committed_bytes(tmp_path):
    for name in ("generate.py", "situations.toml"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    subprocess.run([sys.executable, "generate.py"], cwd=tmp_path, check=True, stdout=-3)
    made, kept = (folder / "tickets_train.jsonl" for folder in (tmp_path, DATA))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (made, kept)]
    assert digests[0] == digests[1]
