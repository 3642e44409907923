"""The facts of the policy, and judging replies by them: strict on numbers, fair to free wording."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from qlora_kit.data import facts, quantities, tickets
from qlora_kit.errors import KitError
from qlora_kit.paths import DATA

POLICY = (DATA / "policy.md").read_text(encoding="utf-8")
BULLETS = re.findall(r"^- (.+)$", POLICY, re.MULTILINE)
NUMBER = r"(?<![\d.])\d+(?:\.\d+)?(?!\.?\d|st|nd|rd|th)"
NUMBERS = sorted(set(re.findall(NUMBER, "\n".join(BULLETS))), key=float)
UNITS = [
    *("years", "months", "weeks", "days", "working days", "hours", "minutes", "seconds"),
    *("litres", "degrees", "percent", "euros", "GHz"),
]
BOOK = facts.load(DATA / "facts.toml")
LISTS = tomllib.loads((Path(__file__).parent / "fact_wordings.toml").read_text(encoding="utf-8"))
INVENTED, ODD = LISTS.pop("invented")["false"], LISTS.pop("odd")["true"]
WORDINGS = {f"{c}.{name}": lists for c, entries in LISTS.items() for name, lists in entries.items()}
PROMISE = "We are sorry for the trouble. A colleague will look into it today and get back to you."
LABELS = [f"{c}, {p}" for c in tickets.CATEGORIES for p in tickets.PRIORITIES]


def asking(*names, text="Hello.", category="app"):
    """A ticket that wants these facts."""
    return tickets.Ticket(text, category, "low", "Sorry.", "mine.jsonl:1", names)


def verdict(reply, name):
    return facts.judge(reply, asking(name), BOOK).verdicts[name]


def stands_against(reply, book=BOOK, text="Hello."):
    """The sentences of the policy against a reply to a ticket that wants no fact."""
    return [sentence for _, sentence in facts.judge(reply, asking(text=text), book).false]


@pytest.fixture(scope="module")
def dev():
    return tickets.load(DATA / "tickets_dev.jsonl", facts=BOOK)


@pytest.fixture(scope="module")
def factual(dev):
    return [ticket for ticket in dev if ticket.facts]


def test_every_sentence_of_the_policy_is_in_the_book_and_nothing_else():
    assert {fact.fact for fact in BOOK.values()} == set(BULLETS)
    sections = dict(re.findall(r"^### (\w+)\n(.+?)(?=^#|\Z)", POLICY, re.M | re.S))
    for name, fact in BOOK.items():
        assert fact.fact in sections[name.partition(".")[0]]


def test_the_reference_replies_get_every_fact_right(factual):
    test = tickets.load(DATA / "tickets_test.jsonl", facts=BOOK)
    assert len(factual) > 200
    for ticket in [*factual, *(ticket for ticket in test if ticket.facts)]:
        judgement = facts.judge(ticket.reply, ticket, BOOK)
        assert set(judgement.verdicts.values()) == {"right"}, ticket.where


@pytest.mark.parametrize("name", ["dev", "test", "train"])
def test_no_reference_reply_holds_a_false_statement(name):
    """Each reply is judged once: the generator's come in many copies."""
    seen = {}
    for ticket in tickets.load(DATA / f"tickets_{name}.jsonl", facts=BOOK):
        seen.setdefault((ticket.reply, ticket.facts), ticket)
    for ticket in seen.values():
        assert facts.judge(ticket.reply, ticket, BOOK).false == (), ticket


def test_every_fact_has_wordings():
    assert list(WORDINGS) == list(BOOK)
    for lists in WORDINGS.values():
        assert min(len(lists["right"]), len(lists["false"])) >= 4
    assert len(INVENTED) >= 40
    assert len(ODD) >= 20


@pytest.mark.parametrize("name", BOOK)
def test_other_words_for_a_fact_are_right(name):
    for reply in WORDINGS[name]["right"]:
        forms = reply, reply.upper(), reply.replace(" ", "\n"), reply.replace("'", "\u2019")
        for text in (*forms, f"app, low\n{reply}", f"{reply} {PROMISE}"):
            judgement = facts.judge(text, asking(name), BOOK)
            assert judgement == facts.Judgement({name: "right"}, ()), text


@pytest.mark.parametrize("name", BOOK)
def test_a_contradiction_is_false_in_a_reply_to_any_ticket(name):
    for reply in WORDINGS[name]["false"]:
        assert verdict(reply, name) == "false", reply
        assert verdict(f"{PROMISE} {reply}", name) == "false", reply
        assert BOOK[name].fact in stands_against(reply), reply


@pytest.mark.parametrize("name", BOOK)
def test_a_part_of_a_fact_is_neither_right_nor_false(name):
    for reply in WORDINGS[name].get("part", []):
        assert verdict(reply, name) in ("silent", "evasive"), reply
        assert stands_against(reply) == [], reply


def test_what_a_weak_model_makes_up_is_false():
    for reply in INVENTED:
        assert stands_against(reply), reply


def test_true_words_in_an_odd_order_are_not_false():
    for reply in ODD:
        assert stands_against(reply) == [], reply


@pytest.mark.parametrize("reply", ["", "\n", "...", "Yes.", "No.", "Sorry about that!", *LABELS])
def test_a_reply_that_says_nothing_is_silent(reply):
    assert set(facts.judge(reply, asking(*BOOK), BOOK).verdicts.values()) == {"silent"}
    assert stands_against(reply) == []


@pytest.mark.parametrize(
    "reply",
    [
        PROMISE,
        "A colleague will look into it today.",
        "I have handed this to a colleague, who will look into it.",
        "Somebody from our team will be in touch.",
        "We will get back to you soon.",
        "billing, low\nSorry! Support will contact you.",
    ],
)
def test_the_promise_of_a_colleague_is_evasive(reply):
    judgement = facts.judge(reply, asking(*BOOK), BOOK)
    assert judgement.false == ()
    assert judgement.count("evasive") == (len(BOOK), len(BOOK))


def test_a_changed_number_is_never_right_and_nearly_always_false(factual):
    tried = {"false": 0, "not false": 0}
    for ticket in factual:
        told = facts.amounts_of(quantities.plain(ticket.ticket))
        meant = set(re.findall(NUMBER, " ".join(BOOK[name].fact for name in ticket.facts)))
        for match in re.finditer(NUMBER, ticket.reply):
            for other in set(NUMBERS) - {match[0]} if match[0] in meant else ():
                changed = ticket.reply[: match.start()] + other + ticket.reply[match.end() :]
                judgement = facts.judge(changed, ticket, BOOK)
                right = set(judgement.verdicts.values()) == {"right"}
                # "3, 3 or 12 months" is clumsy, not wrong: the three lengths are alternatives
                gift = "subscription.gift" in ticket.facts and {match[0], other} <= {"3", "6", "12"}
                assert judgement.false or not right or gift, changed
                if float(other) not in {number for _, number in told}:
                    tried["false" if judgement.false else "not false"] += 1
    assert tried["false"] > 500
    assert tried["not false"] < 0.05 * tried["false"], tried


def test_money_taken_by_mistake_is_no_refund():
    ticket = asking("billing.refund")
    for days, false in (("24 hours", False), ("9 days", True)):
        reply = f"The money taken by mistake is back within {days}."
        assert bool(facts.judge(reply, ticket, BOOK).false) == false


def test_reciting_numbers_gets_nothing():
    for unit in UNITS:
        once = ", ".join(NUMBERS) + f" {unit}."
        each = ", ".join(f"{number} {unit}" for number in NUMBERS) + "."
        for reply in (once, each, f"{once} {each} A colleague will look into it today."):
            assert facts.judge(reply, asking(*BOOK), BOOK).count("right")[0] == 0, reply


def test_the_replies_to_other_rows_pass_for_hardly_anything(factual):
    right, total = 0, 0
    for ticket in factual[:40]:
        for other in factual[:40]:
            if wanted := set(ticket.facts) - set(other.facts):
                row = dataclasses.replace(ticket, facts=tuple(wanted))
                count = facts.judge(other.reply, row, BOOK).count("right")
                right, total = right + count[0], total + count[1]
    assert right / total < 0.02


@pytest.mark.parametrize("name", BOOK)
def test_no_pattern_is_idle(name):
    """Without any one pattern some wording above would be judged otherwise."""
    fact, lists = BOOK[name], WORDINGS[name]
    others = [reply for other in WORDINGS if other != name for reply in WORDINGS[other]["right"]]
    replies = {
        "says": [PROMISE, "", *LABELS, *lists["false"], *lists.get("part", []), *others],
        "never": lists["false"],
        "about": lists["false"],
    }

    def judged(reply, key, book):
        # only the fact's own patterns matter for what is right
        mine = {name: book[name]} if key == "says" else book
        yield facts.judge(reply, asking(name), mine).verdicts[name]
        if key != "says":
            yield fact.fact in stands_against(reply, mine)
            yield facts.judge(reply, asking(name, text=reply), mine).verdicts[name]

    for key, tried in replies.items():
        patterns = getattr(fact, key)
        for i, pattern in enumerate(patterns):
            fewer = dataclasses.replace(fact, **{key: patterns[:i] + patterns[i + 1 :]})
            book = BOOK | {name: fewer}
            assert any(
                list(judged(reply, key, book)) != list(judged(reply, key, BOOK)) for reply in tried
            ), f"{key}: {pattern.pattern}"


@pytest.mark.parametrize(
    "text, says",
    [
        ("It's FORTY-FIVE days,\nnot twenty!", "its 45 days not 20"),
        ("You can\u2019t; it won't; it doesn't.", "you can not\nit will not\nit does not"),
        ("Use 2.4GHz. Not 5.", "use 2.4 ghz\nnot 5"),
        (
            "Until the first, i.e. the 1st (not the fifth).",
            "until the 1st i\ne\nthe 1st not the 5th",
        ),
        (
            "**one point two** litres, 40\u2013100 \u00b0C, 15%",
            "1.2 litres 40 to 100 degrees c 15 percent",
        ),
        ("3, 6,12 or, well, 24", "3 or 6 or 12 or well 24"),
        ("16:00 (4 p.m. for €5), a dozen", "16 00 4 pm for 5 euros 12"),
        ("a hundred, sixty, sixteen, someone", "100 60 16 someone"),
    ],
)
def test_the_plain_form_of_a_reply(text, says):
    assert quantities.plain(text) == says


def test_other_than_takes_any_other_number_and_any_list_with_one():
    pattern = facts.compile_pattern("{other than 3|1.2} days", {})
    for text in (
        "4 days",
        "33 days",
        "13 days",
        "3 or 4 days",
        "4 to 3 days",
        "1.25 days",
        "2 days",
    ):
        assert pattern.search(text), text
    for text in ("3 days", "1.2 days", "days", "4 cups in 3 days"):
        assert not pattern.search(text), text


@pytest.mark.parametrize(
    "text, amounts",
    [
        ("within a day or 24 hours", {("time", 86400)}),
        ("3, 6 or 12 months", {("months", 3), ("months", 6), ("months", 12)}),
        ("half a year, a fortnight", {("months", 6), ("time", 1209600)}),
        ("the next working day; 8 business days", {("working days", 1), ("working days", 8)}),
        ("from 40 to 100 degrees in steps of 5", {("degrees", n) for n in (40, 100, 5)}),
        ("version 6.2; 2.4 GHz and 4 pm", {("version", 6.2), ("ghz", 2.4), ("clock", 4)}),
        ("on the 5th, one of them, have a good day, once a year", set()),
    ],
)
def test_quantities_of_a_text(text, amounts):
    assert facts.amounts_of(quantities.plain(text)) == amounts


def test_a_number_of_the_ticket_is_not_made_up():
    told = asking(text="I paid 54,90 for it six weeks ago, and there are forty of us.")
    for reply in ("54.90 euros, six weeks ago", "After six weeks: no.", "40 kettles are many."):
        assert facts.judge(reply, told, BOOK).false == (), reply
    for reply in ("55 euros", "seven weeks", "six years", "50 kettles"):
        assert facts.judge(reply, told, BOOK).false, reply
    assert facts.judge("The warranty is 2 years.", asking(text="Is it 2 years?"), BOOK).false


def test_words_that_two_facts_share_speak_of_the_wanted_one():
    reply = "The money is back on the card within 5 working days."
    assert verdict(reply, "billing.mistake") == "false"
    assert facts.judge(reply, asking("billing.refund"), BOOK).false == ()


def test_beside_a_made_up_number_stands_what_the_policy_says_on_the_wanted_facts():
    wanted = asking("app.pair", "app.update", "app.wifi")
    [(words, sentence)] = facts.judge("It is only available for 10 years.", wanted, BOOK).false
    assert words == "10 years"
    assert sentence == f"{BOOK['app.pair'].fact} {BOOK['app.update'].fact}"
    [(_, sentence)] = facts.judge("It costs 9 euros.", asking(category="returns"), BOOK).false
    assert sentence.startswith("Things can be sent back") and "Exchanges are free." in sentence


def test_a_ticket_that_names_no_fact_or_an_unknown_one():
    bare = dataclasses.replace(asking(), facts=None)
    assert facts.judge("45 days", bare, BOOK).verdicts == {}
    with pytest.raises(KitError, match=r"mine\.jsonl:1: no fact is called 'returns\.day'"):
        facts.judge("45 days", asking("returns.day"), BOOK)


FACT = """
[repair.years]
fact = "The warranty is 3 years."
says = ['3 {years}']
never = []
"""
WORDS = "[words]\nyears = 'years?|yrs'\n"


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return facts.load(path)

    return load


def test_a_book_of_ones_own(load):
    book = load(WORDS + FACT + "value = ['3 years']\nabout = ['warranty']")
    assert list(book) == ["repair.years"]
    judgement = facts.judge("app, low\nIt has three yrs.", asking("repair.years"), book)
    assert judgement.count("right") == (1, 1)
    judgement = facts.judge("The warranty is 3 or 4 years.", asking("repair.years"), book)
    assert judgement.verdicts == {"repair.years": "false"}
    assert judgement.false == (("3 or 4 years", "The warranty is 3 years."),)


@pytest.mark.parametrize(
    "text, says",
    [
        (FACT.replace("never = []", ""), "repair.years: 'never' is missing"),
        (FACT.replace("['3 {years}']", "[]"), "repair.years: 'says' is empty"),
        (FACT.replace("['3 {years}']", "'3'"), "repair.years: 'says' is not a list"),
        (FACT.replace("3 {years}", "3 ("), r"repair.years: '3 \(' is no regular expression"),
        (FACT.replace("{years}", "{ages}"), "'3 {ages}' holds {ages}, which is not in"),
        (FACT + "value = ['three']", "'three' is no number with a unit"),
        (FACT + "about = 'warranty'", "repair.years: 'about' is not a list"),
        ("[[fact]", "is not a TOML file"),
        ("", "has no fact"),
    ],
)
def test_a_bad_book_is_one_sentence_with_file_and_fact(load, text, says):
    with pytest.raises(KitError, match=says) as error:
        load(WORDS + text if text.startswith("\n") else text)
    assert "mine.toml" in str(error.value)


def test_a_missing_book(tmp_path):
    with pytest.raises(KitError, match="cannot be read"):
        facts.load(tmp_path / "none.toml")
