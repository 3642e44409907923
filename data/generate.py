"""Write made-up support tickets with their labels to tickets_train.jsonl, the same on every run.

The text lives in situations.toml, the rules in policy.md. A ticket is a situation in one of its
phrasings, often with an opener, a detail, a date, a second problem or a closer around it, and
then a tone (lower case, American spelling, shaky grammar, ...) and typing errors. Its row names
the facts of the policy that the reply states.
"""

import json
import random
import re
import tomllib
from collections import Counter
from itertools import product
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TABLES = tomllib.loads((HERE / "situations.toml").read_text(encoding="ascii"))
LEVELS = ["low", "normal", "urgent"]
TICKET_WORDS, REPLY_WORDS = range(6, 56), range(10, 31)
KEYBOARD = "qwertyuiop asdfghjkl zxcvbnm"

SEED = 20240607
rng = random.Random()


def chance(name):
    return rng.random() < TABLES["share"][name]


class Problem(NamedTuple):
    situation: dict
    phrase: str
    key: str  # of its reply

    @property
    def facts(self):
        return TABLES["replies"][self.key.removesuffix("+")]["facts"]

    def levels(self):
        """Its priority and, where a near date can be added or is in it, calm and dated."""
        level = self.situation["priority"]
        calm = level != "urgent" and "{far}" not in self.phrase
        return [level] + ["calm"] * calm + ["dated"] * (calm and dated(self.phrase))


class Deck:
    """Deals the fact that has been taught least, in the phrasing that has been used least."""

    def __init__(self):
        self.stock, self.taught, self.used = {}, Counter(), Counter()
        for category, situations in TABLES["situations"].items():
            for situation in situations:
                for phrase, key in product(situation["say"], situation["reply"]):
                    problem = Problem(situation, phrase, key)
                    for level in problem.levels():
                        facts = self.stock.setdefault((category, level), {})
                        for fact in problem.facts or [None]:
                            facts.setdefault(fact, []).append(problem)

    def rounds(self, problems):
        return min(self.used[problem.phrase] for problem in problems)

    def deal(self, category, level, factless=False):
        facts = self.stock[category, level]
        cost = {  # a fact whose phrasings have all been used waits for the others
            fact: (self.taught[fact] + 15 * self.rounds(problems), rng.random())
            for fact, problems in facts.items()
            if fact
        }
        fact = None if (factless and None in facts) or not cost else min(cost, key=cost.get)
        fewest = self.rounds(facts[fact])
        problem = rng.choice([p for p in facts[fact] if self.used[p.phrase] == fewest])
        self.used[problem.phrase] += 1
        return problem


class Slots:
    """Fills the {slots} of one ticket; a slot keeps its value through the whole ticket.

    A slot with a 2 takes another value than the one without; {x_cap} starts with a capital.
    """

    def __init__(self, near):
        model = rng.choice(TABLES["slots"]["model"])
        self.values = {
            "model": model,
            "kettle": rng.choice(["kettle", model, model.removeprefix("Wren ")]),
            "num": str(rng.randint(10000, 99999)),
            "on": rng.choice(TABLES["dates"]["near_on" if near else "far_on"]),
            "by": rng.choice(TABLES["dates"]["near_by" if near else "far_by"]),
            "far": rng.choice(TABLES["dates"]["far_on"]),
        }

    def value(self, name):
        if name not in self.values:
            first = name.rstrip("2")
            taken = self.value(first) if first != name else None
            choices = [value for value in TABLES["slots"][first] if value != taken]
            self.values[name] = rng.choice(choices)
        return self.values[name]

    def fill(self, template):
        text = re.sub(r"\{(\w+)_cap\}", lambda match: self.value(match[1]).capitalize(), template)
        text = re.sub(r"\{(\w+)\}", lambda match: self.value(match[1]), text)
        text = re.sub(r"\ba (?=[aeio])", "an ", text)
        return text[0].upper() + text[1:]


def slots_of(template):
    return {name.replace("kettle", "model") for name in re.findall(r"\{([a-z]+)", template)}


def dated(phrase):
    return not slots_of(phrase).isdisjoint({"on", "by"})


def lower_first(text):
    word = re.split(r"[ ,.']", text, maxsplit=1)[0]
    if word == "I" or word in TABLES["names"]["keep"] or (word.isupper() and len(word) > 1):
        return text
    return text[0].lower() + text[1:]


def misspell(text):
    """One to three slips of the fingers, never in a number or a short word."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        word = rng.choice(list(re.finditer(r"[A-Za-z]{4,}", text)))
        at = rng.randrange(word.start() + 1, word.end() - 1)
        key = KEYBOARD.index(text[at].lower())
        beside = [c for c in KEYBOARD[max(key - 1, 0) : key + 2] if c not in (text[at], " ")]
        slips = [text[at + 1] + text[at], text[at + 1], text[at] + text[at : at + 2]]
        slips.append(rng.choice(beside) + text[at + 1])  # so: swap, drop, double, key beside
        text = text[:at] + rng.choice(slips) + text[at + 2 :]
    return text


TONES = {
    "exclaim": lambda text: re.sub(r"\.(?= |$)", lambda _: rng.choice([".", "!", "!!"]), text),
    "shout": str.upper,
    "lower": str.lower,
    "bare": lambda text: re.sub(r"[,.:;!?](?= |$)|\"", "", text.lower()),
    "typos": misspell,
}


def set_tone(text):
    for tone, changes in TABLES["tones"].items():
        if chance(tone):
            for pattern, change in changes:
                if rng.random() < 0.8:
                    text = re.sub(pattern, change, text)
    for tone, change in TONES.items():
        if chance(tone):
            text = change(text)
    return text


def write_ticket(category, phrases, level, priority, near):
    """level is that of the first problem by itself, priority that of the whole ticket."""
    slots, owner = Slots(near), category != "product"
    used = set().union(*map(slots_of, phrases))

    def add(options):
        """A sentence that has no slot in common with the rest, so that nothing is said twice."""
        template = rng.choice([option for option in options if used.isdisjoint(slots_of(option))])
        used.update(slots_of(template))
        parts.append(slots.fill(template))

    parts = []
    if chance("opener"):
        add(TABLES["openers"]["owner" if owner and rng.random() < 0.25 else "any"])
    parts.append(slots.fill(phrases[0]))
    if chance("detail"):
        details = TABLES["details"][rng.choice([category] * 4 + ["any"])]
        add(details["all"] + (details["wrong"] if level != "low" else []))
    # an urgent phrasing may name a near date in so many words: no far one beside it
    calm = len(phrases) == 1 and level != "urgent" and "{far}" not in phrases[0]
    if not any(map(dated, phrases)) and (near or (calm and chance("far_date"))):
        add(TABLES["deadlines"][rng.choice([category, category, "any"][: 2 + owner])])
        if priority != "urgent" and rng.random() < 0.3:
            parts[-1] = parts[-1].removesuffix(".") + rng.choice(TABLES["deadlines"]["tails"])
    for phrase in phrases[1:]:
        link = rng.choice(TABLES["connectors"]["any"])
        parts.append(link.replace("{b}", lower_first(slots.fill(phrase))))
    if chance("closer"):
        weights = TABLES["closer_weights"][priority]
        add(TABLES["closers"][rng.choices(list(weights), list(weights.values()))[0]])

    text = parts[0]
    for part in parts[1:]:
        text += " " + (lower_first(part) if text[-1] in ",:" else part)
    return set_tone(text)


def write_reply(problems):
    """Its text and facts: a sentence for each problem; one alone may get a lead in front."""
    first, last = problems[0], problems[-1]
    lead = first.situation.get("lead", first.situation["priority"])
    leads = TABLES["reply_parts"] | TABLES["answers"]
    while True:
        said = [rng.choice(TABLES["replies"][p.key.removesuffix("+")]["say"]) for p in problems]
        if set(first.facts).isdisjoint(last.facts) and first.key != last.key and chance("both"):
            facts, reply = first.facts + last.facts, said
        elif first.key.endswith("+"):
            facts, reply = first.facts, [said[0], rng.choice(TABLES["reply_parts"]["plus"])]
        else:
            bare = lead in TABLES["reply_parts"] and rng.random() < 0.5
            facts, reply = first.facts, [rng.choice(leads[lead]), said[0]][bare:]
        text = " ".join(reply)
        if len(text.split()) in REPLY_WORDS:
            return {"reply": text, "facts": facts}


def draw_problems(deck, category, priority, near, factless):
    """One problem, or two of which one or both have the priority (or get a near date)."""
    level, below = priority, LEVELS[: LEVELS.index(priority) + 1]
    if near:
        level, below = ("dated" if chance("own_date") else "calm"), LEVELS[:2]
    if not chance("second"):
        return [deck.deal(category, level, factless)]
    other = rng.choice([name for name in TABLES["quotas"] if name != category])
    levels = [level, rng.choice(below)]
    if not near:
        rng.shuffle(levels)
    return [deck.deal(category, levels[0], factless), deck.deal(other, levels[1], factless)]


def make_plan(deck):
    """Category, priority, whether a near date makes it urgent, and whether no fact answers it."""
    plan = []
    for level, (category, quota) in product(["normal", "low", "urgent"], TABLES["quotas"].items()):
        # a phrasing that is urgent in itself is used about twice; the others get a near date
        pool = deck.stock[category, "urgent"].values()
        urgent = {problem.phrase for problems in pool for problem in problems}
        near_from = min(2 * len(urgent), quota["urgent"] * 4 // 5)
        factless = rng.sample(range(quota[level]), TABLES["factless"][category][level])
        for index in range(quota[level]):
            plan.append(
                (category, level, level == "urgent" and index >= near_from, index in factless)
            )
    return plan


def make_rows():
    rng.seed(SEED)
    deck = Deck()
    rows = {}  # by the bare words of the ticket, so that no two are alike
    for category, priority, near, factless in make_plan(deck):
        before = len(rows)
        while len(rows) == before:
            problems = draw_problems(deck, category, priority, near, factless)
            phrases, level = [p.phrase for p in problems], problems[0].situation["priority"]
            ticket = write_ticket(category, phrases, level, priority, near)
            bare = re.sub(r"[^a-z0-9]+", " ", ticket.lower()).strip()
            if len(ticket.split()) in TICKET_WORDS and bare not in rows:
                row = {"ticket": ticket, "category": category, "priority": priority}
                rows[bare] = row | write_reply(problems)
                deck.taught.update(rows[bare]["facts"])
    return rng.sample(list(rows.values()), len(rows))


if __name__ == "__main__":
    with open(HERE / "tickets_train.jsonl", "w", encoding="ascii", newline="\n") as out:
        out.writelines(json.dumps(row) + "\n" for row in make_rows())
