"""The checklist of policy facts, and counting by it: strict on numbers, fair to free wording."""

import dataclasses
import re

import pytest

from qlora_kit.data import facts, tickets
from qlora_kit.errors import KitError
from qlora_kit.paths import DATA

POLICY = (DATA / "policy.md").read_text(encoding="utf-8")
BULLETS = re.findall(r"^- (.+)$", POLICY, re.MULTILINE)
NUMBER = r"(?<![\d.])\d+(?:\.\d+)?(?!\.?\d)"
NUMBERS = sorted(set(re.findall(NUMBER, "\n".join(BULLETS))), key=float)
UNITS = [
    *("years", "months", "weeks", "days", "working days", "hours", "minutes", "seconds"),
    *("litres", "degrees", "percent", "euros", "GHz"),
]

# Other words for what the reference replies say, by the ticket's line: each gets every fact right.
PARAPHRASES = [
    (7, "He has four whole years, so no need to hurry!"),
    (7, "GIFT CARDS STAY VALID FOR 4 YEARS."),
    (37, "I'm sorry! You'll have the second amount back in twenty-four hours."),
    (37, "We refund whatever was taken twice within a day."),
    (38, "That was our mistake. The sum will be refunded to your card within 24h."),
    (44, "No, sorry: only one per order."),
    (44, "You can't stack them. A single code is what each order takes."),
    (
        65,
        "You get the money back within 24 hours. As to the dent: mail us a picture in the next two "
        "weeks, and on the next business day a new tin sets off.",
    ),
    (15, "Allow three working days."),
    (15, "The standard one takes three working days."),
    (15, "The ordinary way takes 3 business days (express only one)."),
    (
        16,
        "Could you send us a photo within fourteen days? We ship another kettle the next workday.",
    ),
    (
        26,
        "We'd like a picture of the burst bag within 14 days; the new mint leaves one working day "
        "later. And tell us by the first of the month about the green tea.",
    ),
    (32, "After seven working days we treat it as lost. You get another at no cost."),
    (32, "Nine days means that it counts as lost, and you get a replacement, free of charge."),
    (40, "It is: one business day. And your aunt would have forty-five days to return it."),
    (5, "Print the free label (in your account, under Returns) and post it within 45 days."),
    (5, "You've got FORTY-FIVE DAYS.\nThe label costs nothing; find it\nunder Returns."),
    (10, "Your account holds a free label, to be used within 45 days. Only one code per order."),
    (10, "Sure: within 45 days, with the label under 'Returns'. Two codes can't be combined."),
    (21, "You don't pay a cent, the postage is on us."),
    (21, "There is no charge for it."),
    (21, "Good question! We do."),
    (22, "You are: the limit is 45 days."),
    (43, "Swapping it costs you nothing. And the second payment is refunded within 24 hours."),
    (3, "Enter the new one, then open the new inbox and click to confirm."),
    (3, "We'll send a link to the new address; verify it there and that's all."),
    (18, "The lock lasts an hour, so you'll be back in long before nine."),
    (18, "Your account opens again after sixty minutes."),
    (27, "Do you have a back-up code? If not, tell support the number of one of your orders."),
    (27, "Support can help if you give an order number, or a backup code does the trick."),
    (29, "It's blocked for one hour after five tries."),
    (57, "We are freezing your account right now."),
    (57, "Your account is frozen immediately so that nobody else can use it."),
    (14, "Keep the blue button pressed for six full seconds."),
    (14, "Don't let go before 6s are over!"),
    (30, "About a quarter of an hour."),
    (30, "It'll be back after fifteen minutes."),
    (31, "She's right. It can't use 5 GHz, so please pick the 2.4GHz network."),
    (31, "Our kettles only know 2.4-gigahertz wifi."),
    (36, "Please update the app to 6.2, that cures most such errors."),
    (56, "Have you got version 6.2 or newer? It fixes most errors."),
    (
        1,
        "Your guarantee runs for three years, so you're covered! We send a carton at no charge, "
        "and you'll have the kettle back after eight business days.",
    ),
    (11, "Citric acid, every other month."),
    (11, "Vinegar won't do; once every two months, please use CITRIC ACID."),
    (12, "Pull the plug right away! Within two hours someone from the safety team rings you."),
    (
        17,
        "We repair it in eight working days; the box is free. It's covered for three years.",
    ),
    (25, "It has a 3-year guarantee. Send it in with our free box, and allow 8 workdays."),
    (24, "The first of the month is the deadline."),
    (24, "Any change made before the 1st goes into the box that leaves on the fifth."),
    (49, "You can choose between three months, half a year and a full year."),
    (49, "There are three: 12 months, 6 months or 3 months."),
    (53, "You can try again in an hour. Skipping is possible till the first, so there is time."),
    (80, "It doesn't cost anything and there's nothing to sign, just cancel in your account."),
    (80, "No fee at all, and you can stop whenever you want."),
    (104, "You may pause it for three months at most, so go and sail!"),
    (4, "It wouldn't: one point two litres is all it takes."),
    (4, "No, the Wren stops at 1.2 l."),
    (20, "Up to 1.2 liters."),
    (20, "The bigger one: 1.2 litres."),
    (45, "I'd take the small one: a Wren Mini makes 0.6 litres."),
    (59, "Anything between 40 and 100 °C, in 5-degree steps."),
    (59, "It goes from forty up to one hundred degrees, five degrees at a time."),
    (63, "Our teas contain neither milk nor honey."),
    (63, "No animals were asked: it's all vegan."),
]

# Replies to the tickets of those lines that get none of their facts right.
WRONG = [
    ((7,), "Gift cards are good for 3 years."),
    ((7,), "Gift cards are good for 3 or 4 years."),
    ((7,), "Gift cards are good for 4 months."),
    ((37,), "Money taken twice is given back within 48 hours."),
    ((37,), "Your refund reaches the card within 5 working days."),
    ((37,), "Money taken twice is given back within 24 hours or 5 working days."),
    ((37, 38, 43, 65), "The account is locked for 24 hours."),
    ((37, 38, 43, 65), "The money is back within 24 hours, at the latest in 48 hours."),
    ((38,), "A colleague will look into the money within 24 hours."),
    ((38,), "You get the money back within two days."),
    ((44,), "Two discount codes can be used for each order."),
    ((44,), "Yes, you can stack both codes."),
    ((10, 44), "Two codes can be used: one code for the tea, the other for the kettle."),
    ((44,), "Yes, one discount code can be used for each order."),
    ((65,), "The money is back in 2 hours. Send a photo within 45 days."),
    ((65,), "Send a photo within 14 days and a replacement leaves in 3 working days."),
    (
        (16, 26, 65),
        "Send a photo within 14 days, or 30 days for tea; a new one leaves the next working day.",
    ),
    ((16, 26, 65), "You have 14 days, and the replacement leaves the next working day."),
    ((16, 26, 65), "Send a photo, and the replacement leaves the next working day."),
    ((26, 65), "Send a photo within 14 days, and we see what we can do."),
    ((15,), "Standard delivery takes 1 working day; express takes 3."),
    ((15,), "Standard delivery takes 5 working days."),
    ((15,), "Standard delivery takes 2 to 3 working days."),
    ((16,), "Send a photo within 45 days, and the replacement leaves the next working day."),
    ((16,), "Send a photo within 14 days, and we see what we can do."),
    ((26,), "Send it back within 45 days. Changes count until the 5th."),
    ((24, 26, 53), "Changes count until the 1st or the 5th."),
    (
        (32,),
        "A parcel counts as lost after 14 working days; then a new one is sent free of charge.",
    ),
    ((32,), "A parcel counts as lost after 7 working days; then you can buy a new one."),
    ((32,), "Your parcel is not yet lost: after 7 working days a new one is sent free of charge."),
    ((32,), "Please print a new label, it is free."),
    ((32,), "A parcel counts as lost after 7 working days. The return label is free."),
    ((40,), "Express takes 3 working days. You have 14 days to send it back."),
    ((40,), "Express takes 1 working day, in the hills 2 working days."),
    ((40,), "Express takes 2 working days. Send it back within 14 or 45 days."),
    ((5, 10, 22, 40), "You have 45 days, in summer 30 days."),
    ((5,), "You have 14 days to send it back."),
    ((5,), "You have 45 weeks, and you pay for the label in your account."),
    ((5, 10), "The return label costs nothing, ask a colleague for it."),
    ((5, 10, 21), "The label in your account is free, but you pay the postage."),
    ((10,), "You have 30 days. You can use both codes."),
    ((21,), "You do, the label isn't free."),
    ((21,), "Feel free to send it back."),
    ((21,), "The return label costs 5 euros."),
    ((21,), "Exchanges are free, and the return label is in your account."),
    ((22,), "You bought it 28 days ago."),
    ((5, 10, 22, 40), "It came 20 days ago."),
    ((22,), "Things can be sent back within 14 days."),
    ((22,), "No, it is too late: things can be sent back within 45 days."),
    ((43,), "Exchanges are not free. The money is given back within 5 working days."),
    ((43,), "An exchange is free, but you pay the postage."),
    ((3,), "A new e-mail address is confirmed from the old mailbox."),
    ((3,), "Enter the new address in the account and confirm it."),
    ((3,), "Confirm it from the new mailbox or from the old one."),
    ((3,), "Write to us from the new mailbox."),
    ((18,), "After five wrong passwords the account is locked for 24 hours."),
    ((18,), "A colleague will call you within 1 hour."),
    ((18, 29, 53), "The account is locked for 1 hour, and for 24 hours if you try again."),
    ((18, 29, 53), "A password link works for 1 hour."),
    ((27,), "A password link works for 20 minutes."),
    ((27,), "A lost two-step code is replaced by a backup code."),
    ((27,), "Support needs an order number."),
    ((27,), "A backup code, an order number or a password link will do."),
    ((29,), "The account is locked for 20 minutes."),
    ((29,), "The account is locked for 1 or 2 hours."),
    ((57,), "We freeze it within 24 hours."),
    ((57,), "After five wrong passwords the account is locked for 1 hour."),
    ((57,), "Please freeze your account."),
    ((57,), "After five wrong passwords the account is locked."),
    ((57,), "We do not freeze accounts."),
    ((14,), "To pair, hold the blue button for 15 seconds."),
    ((14,), "To pair, hold the red button for 6 seconds."),
    ((14,), "Hold the blue button for 6 seconds, better for 10 seconds."),
    ((14,), "The lamp next to the blue button blinks for 6 seconds."),
    ((30,), "A kettle update takes 20 minutes."),
    ((30,), "A kettle update takes 15 minutes, sometimes 2 hours."),
    ((30,), "A kettle update takes 15 hours."),
    ((31,), "The kettle joins 5 GHz Wi-Fi as well as 2.4 GHz."),
    ((31,), "The kettle joins 5 GHz Wi-Fi only."),
    ((31,), "The kettle joins 2.4 and 5 GHz Wi-Fi."),
    ((36, 56), "Install version 6.2, on old phones version 5.9."),
    ((36,), "Most app errors go away with app version 5.2."),
    ((56,), "Most app errors go away with app version 6.2 or 6.3."),
    ((1,), "The warranty is 2 years. A repair takes 5 working days, and the box is free."),
    ((1,), "After three years the warranty has expired. A repair takes 8 working days."),
    ((1, 17, 25), "The warranty is 3 years, for the Mini it is 4 years."),
    ((1,), "The warranty is 2 years, for the Mini it is 3 years."),
    ((1, 17, 25), "It is covered by the warranty."),
    ((1, 17, 25), "Our kettles last 3 years."),
    ((1, 17, 25), "A repair takes 8 working days, in summer 10 working days, and the box is free."),
    ((1, 17, 25), "A repair takes 8 working days, and it is free."),
    ((1, 17, 25), "A repair takes 8 working days, and you get a box for 29 euros."),
    ((11,), "Limescale is taken off with citric acid every 3 months."),
    ((11,), "Use vinegar every 2 months."),
    ((11,), "Citric acid every 2 months, or use vinegar."),
    ((11,), "Clean it every 2 months."),
    ((11,), "Citric acid every 2 months, or every week."),
    ((11,), "Use citric acid."),
    ((12,), "Unplug the kettle at once; the safety team calls within 24 hours."),
    ((12,), "A colleague calls within 2 hours."),
    ((12,), "Unplug the kettle; the safety team calls within 2 hours or 2 days."),
    ((12,), "Do not unplug the kettle; the safety team calls within 2 hours."),
    ((12,), "The safety team calls within 2 hours."),
    ((12,), "Unplug the kettle; a colleague calls within 2 hours."),
    ((12,), "Unplug the kettle; the safety team calls."),
    ((17,), "The warranty is 4 years. The box is not free."),
    ((25,), "The warranty is 3 months. A repair takes 29 working days, and the box is free."),
    ((24,), "Changes count until the 5th."),
    ((24,), "Changes count until the 10th."),
    ((49,), "A gift box runs for 3 or 6 months."),
    ((49,), "A gift box runs for 6 or 12 months."),
    ((49,), "A gift box runs for 3 or 12 months."),
    ((49,), "A gift box runs for 1, 3, 6 or 12 months."),
    ((53,), "The account is locked for 3 hours. Changes count until the 15th."),
    ((80,), "It can be cancelled in the account for a fee of 29 euros."),
    ((80,), "It cannot be cancelled in the account, without a fee."),
    ((80,), "You can cancel at any time in the account, it is free after 6 months."),
    ((104,), "It can be paused for up to 2 months."),
    ((104,), "It can be paused for 3 months, once a year for 6 months."),
    ((104,), "It cannot be paused for 3 months."),
    ((4,), "The Wren holds 0.6 litres, the Wren Mini 1.2 litres."),
    ((4,), "Yes, it holds 2 litres."),
    ((4,), "Yes, the Wren holds 1.2 litres."),
    ((20,), "The Wren holds 1.5 litres."),
    ((4, 20), "The Wren holds 1.2 litres, 1.5 litres at most."),
    ((20, 45), "The Mini holds 1.2 litres, the Wren 0.6 litres."),
    ((20,), "The Mini holds 1.2 litres, the bigger one 0.6 litres."),
    ((45,), "The Wren Mini holds 1.2 litres."),
    ((45,), "The Mini holds 0.6 litres, 0.8 litres at most."),
    ((45,), "A cup holds 0.6 litres."),
    ((59,), "The temperature is set from 50 to 100 degrees in steps of 5."),
    ((59,), "The temperature is set from 40 to 100 degrees in steps of 10."),
    ((59,), "In steps of 5."),
    ((59,), "From 40 to 100 degrees."),
    ((59,), "From 40 to 100 degrees in steps of 5, from 50 in steps of 10."),
    ((63,), "The chai is not vegan."),
    ((63,), "It contains honey, but no milk."),
]
WRONG = [(line, reply) for lines, reply in WRONG for line in lines]

# Replies that help nobody.
EMPTY = [
    "",
    "\n",
    "...",
    "A colleague will look into it today.",
    "We are sorry for the trouble. A colleague will look into it today and get back to you.",
    "Yes.",
    "No.",
] + [f"{c}, {p}" for c in tickets.CATEGORIES for p in tickets.PRIORITIES]


@pytest.fixture(scope="module")
def held_out():
    return tickets.load(DATA / "tickets_test.jsonl")


@pytest.fixture(scope="module")
def checklist(held_out):
    return facts.load(DATA / "facts_test.toml", held_out)


def count_right(replies, checklist):
    counts = [
        facts.facts_right(reply, row) for reply, (_, row) in zip(replies, checklist, strict=True)
    ]
    return tuple(map(sum, zip(*counts, strict=True)))


@pytest.fixture(scope="module")
def by_line(checklist):
    return {int(ticket.where.split(":")[1]): row for ticket, row in checklist}


def test_the_rows_are_chosen_by_the_stated_rule(held_out, checklist):
    for category in tickets.CATEGORIES:
        answered = [
            t for t in held_out if t.category == category and "look into" not in t.reply.casefold()
        ]
        assert [t for t, _ in checklist if t.category == category] == answered[:5]
    assert len(checklist) == 40


def test_every_fact_is_a_sentence_of_the_policy(checklist):
    for ticket, row in checklist:
        assert 1 <= len(row) <= 3
        assert len({fact.fact for fact in row}) == len(row)
        for fact in row:
            assert fact.fact in BULLETS, ticket.where


def test_the_reference_replies_get_every_fact_right(checklist):
    right, total = count_right([ticket.reply for ticket, _ in checklist], checklist)
    assert right == total == 51


def missed(reply, row):
    return [fact.fact for fact in row if not fact.is_right(reply)]


def test_other_words_for_the_same_facts_are_right(by_line):
    for line, reply in PARAPHRASES:
        forms = reply, reply.upper(), reply.replace(" ", "\n"), reply.replace("'", "\u2019")
        for text in forms:
            assert missed(text, by_line[line]) == [], f"line {line}: {text}"


def test_the_paraphrases_cover_every_row(by_line):
    assert {line for line, _ in PARAPHRASES} == {line for line, _ in WRONG} == set(by_line)


def test_a_wrong_number_or_a_wrong_yes_is_not_right(by_line):
    for line, reply in WRONG:
        assert facts.facts_right(reply, by_line[line])[0] == 0, f"line {line}: {reply}"


def test_a_reply_without_a_fact_gets_nothing(checklist):
    for reply in EMPTY:
        assert count_right([reply] * 40, checklist) == (0, 51), repr(reply)


def test_a_changed_number_always_costs_a_fact(by_line, checklist):
    references = [(int(t.where.split(":")[1]), t.reply) for t, _ in checklist]
    tried = 0
    for line, reply in references + PARAPHRASES:
        row = by_line[line]
        meant = set(re.findall(NUMBER, " ".join(fact.fact for fact in row)))
        for match in re.finditer(NUMBER, reply):
            for other in set(NUMBERS) - {match[0]} if match[0] in meant else ():
                changed = reply[: match.start()] + other + reply[match.end() :]
                assert missed(changed, row), f"line {line}: {changed}"
                tried += 1
    assert tried > 1500


def test_reciting_numbers_gets_nothing(checklist):
    for unit in UNITS:
        once = ", ".join(NUMBERS) + f" {unit}."
        each = ", ".join(f"{number} {unit}" for number in NUMBERS) + "."
        for reply in (once, each, f"{once} {each} A colleague will look into it today."):
            assert count_right([reply] * 40, checklist) == (0, 51), reply


def test_reciting_the_whole_policy_gets_few_facts(checklist):
    # What is left are facts without a number that could be mistaken, and both kettles' sizes.
    right, total = count_right([" ".join(BULLETS)] * 40, checklist)
    assert right / total < 0.25


def test_the_replies_to_other_rows_get_hardly_anything(checklist):
    right, total = 0, 0
    for ticket, row in checklist:
        for other, others_row in checklist:
            if other is ticket:
                continue
            right += facts.facts_right(other.reply, row)[0]
            total += len(row)
            shared = {fact.fact for fact in others_row}
            for fact in row:
                assert fact.fact in shared or not fact.is_right(other.reply), (
                    f"{ticket.where}: {other.reply!r} passes for {fact.fact!r}"
                )
    assert right / total < 0.05  # rows that share a fact, such as 24 hours for money taken twice


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
            "1.2 litres 40 100 degrees c 15 percent",
        ),
        ("3, 6,12 or, well, 24", "3 or 6 or 12 or well 24"),
        ("a hundred, sixty, sixteen, someone", "100 60 16 someone"),
    ],
)
def test_the_plain_form_of_a_reply(text, says):
    assert facts.plain(text) == says


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


ROW = """
[[row]]
line = 2
opening = "My kettle"
[[row.facts]]
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
        rows = [
            tickets.Ticket("My tea is cold.", "app", "low", "Sorry.", "mine.jsonl:1"),
            tickets.Ticket("My kettle leaks.", "repair", "normal", "Sorry.", "mine.jsonl:2"),
        ]
        return facts.load(path, rows)

    return load


def test_a_checklist_of_ones_own(load):
    [(ticket, [fact])] = load(WORDS + ROW)
    assert ticket.ticket == "My kettle leaks."
    assert fact.is_right("It has three yrs.")
    assert facts.facts_right("app, low\n3 years", [fact, fact]) == (2, 2)
    assert facts.facts_right("33 days", [fact]) == (0, 1)


@pytest.mark.parametrize(
    "text, says",
    [
        (ROW.replace("line = 2", "line = 7"), "row of line 7: no ticket on that line opens with"),
        (ROW.replace("line = 2", "line = 1"), "row of line 1: no ticket on that line opens with"),
        (ROW.replace("My kettle", "my kettle"), "no ticket on that line opens with 'my kettle'"),
        (ROW.replace("line = 2", ""), "'line' is missing"),
        (ROW.replace("never = []", ""), "row of line 2: 'never' is missing"),
        (ROW.replace("['3 {years}']", "[]"), "row of line 2: 'says' is empty"),
        (ROW.replace("['3 {years}']", "'3'"), "row of line 2: 'says' is not a list"),
        (ROW.replace("3 {years}", "3 ("), r"row of line 2: '3 \(' is no regular expression"),
        (ROW.replace("{years}", "{ages}"), "'3 {ages}' holds {ages}, which is not in"),
        ("[[row]", "is not a TOML file"),
        ("", "has no"),
    ],
)
def test_a_bad_checklist_is_one_sentence_with_file_and_row(load, text, says):
    with pytest.raises(KitError, match=says) as error:
        load(WORDS + text if text.startswith("\n") else text)
    assert "mine.toml" in str(error.value)


def test_a_missing_checklist(tmp_path):
    with pytest.raises(KitError, match="cannot be read"):
        facts.load(tmp_path / "none.toml", [])


def test_no_pattern_is_idle(checklist):
    """Without any one pattern of the checklist some reply above would pass that must not."""
    idle = []
    for ticket, row in checklist:
        line = int(ticket.where.split(":")[1])
        for fact in row:
            bad = EMPTY + [reply for wrong, reply in WRONG if wrong == line]
            for other, others_row in checklist:
                if fact.fact not in {f.fact for f in others_row}:
                    bad.append(other.reply)
            for key in ("says", "never"):
                patterns = getattr(fact, key)
                for i, pattern in enumerate(patterns):
                    fewer = {key: patterns[:i] + patterns[i + 1 :]}
                    if not any(dataclasses.replace(fact, **fewer).is_right(b) for b in bad):
                        idle.append((ticket.where, key, pattern.pattern))
    assert idle == []
