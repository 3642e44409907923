"""What the training tickets teach: every fact, in many words, with the right numbers."""

import importlib.util
import re
from collections import Counter

import pytest

from qlora_kit.data import facts, tickets
from qlora_kit.paths import DATA


@pytest.fixture(scope="module")
def generated():
    """The generator, its rows as it makes them, and the phrasings in each ticket."""
    spec = importlib.util.spec_from_file_location("generate", DATA / "generate.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    write, phrases = generator.write_ticket, {}

    def write_ticket(category, said, *rest):
        ticket = write(category, said, *rest)
        phrases[ticket] = said
        return ticket

    generator.write_ticket = write_ticket
    return generator, generator.make_rows(), phrases


def replies_of(generator):
    """The facts and wordings of each key."""
    return {key: (r["facts"], r["say"]) for key, r in generator.TABLES["replies"].items()}


def numbers(text):
    return frozenset(re.findall(r"\d+(?:\.\d+)?", text))


def test_at_most_a_fifth_of_the_replies_state_no_fact(generated):
    _, rows, _ = generated
    without = Counter(row["category"] for row in rows if not row["facts"])
    of = Counter(row["category"] for row in rows)
    assert without.total() <= len(rows) / 5
    assert {name for name in of if without[name] > 0.3 * of[name]} == set()


def test_each_fact_is_taught_by_many_tickets_in_many_words(generated):
    generator, rows, phrases = generated
    asks = {}  # the phrasings that a fact can answer
    for situations in generator.TABLES["situations"].values():
        for s in situations:
            for key in s["reply"]:
                for fact in replies_of(generator)[key.removesuffix("+")][0]:
                    asks.setdefault(fact, set()).update(s["say"])
    assert asks.keys() == facts.load(DATA / "facts.toml").keys()
    taught = Counter(fact for row in rows for fact in row["facts"])
    assert {fact for fact, said in asks.items() if len(said) < 40 or taught[fact] < 40} == set()
    for fact, said in asks.items():
        used = {p for r in rows if fact in r["facts"] for p in phrases[r["ticket"]] if p in said}
        assert len(used) >= 30, fact


def test_each_reply_has_eight_wordings_with_the_same_numbers(generated):
    generator, _, _ = generated
    replies = replies_of(generator)
    alone = {}
    for key, (stated, wordings) in replies.items():
        assert len(set(wordings)) >= 8, key
        assert len({numbers(wording) for wording in wordings}) == 1, key
        if len(stated) == 1:
            alone.setdefault(stated[0], numbers(wordings[0]))
            assert alone[stated[0]] == numbers(wordings[0]), key
    for key, (stated, wordings) in replies.items():
        if alone.keys() >= set(stated):
            assert numbers(wordings[0]) == frozenset().union(*map(alone.get, stated)), key


def test_a_reply_has_no_number_that_its_section_of_the_policy_lacks(generated):
    generator, _, _ = generated
    parts = re.split(r"^### (\w+)$", (DATA / "policy.md").read_text(), flags=re.MULTILINE)
    policy = dict(zip(parts[1::2], map(numbers, parts[2::2]), strict=True))
    for key, (stated, wordings) in replies_of(generator).items():
        allowed = frozenset().union(*(policy[fact.split(".")[0]] for fact in stated))
        assert numbers(" ".join(wordings)) <= allowed, key


def test_a_row_names_the_facts_that_its_reply_states(generated):
    generator, rows, _ = generated
    wordings = [(say, ids) for ids, says in replies_of(generator).values() for say in says]
    for row in rows:
        stated = {fact for say, ids in wordings if say in row["reply"] for fact in ids}
        assert sorted(row["facts"]) == sorted(stated), row


def test_the_checker_finds_the_facts_of_each_training_reply_and_nothing_false():
    book = facts.load(DATA / "facts.toml")
    for row in tickets.load(DATA / "tickets_train.jsonl"):
        judged = facts.judge(row.reply, row, book)
        assert set(judged.verdicts) == set(row.facts)
        assert set(judged.verdicts.values()) <= {"right"} and not judged.false, row
