"""What a reply says about the policy: each fact that is wanted of it right, false, evaded or left
out, and everything in it that the policy contradicts. By patterns that were written by hand.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from qlora_kit.data.quantities import bare_numbers, plain, quantities
from qlora_kit.errors import KitError

VERDICTS = ("right", "false", "evasive", "silent")
WHO = r"(colleagues?|somebody|someone|team|specialists?|experts?|agents?|support|we|i)"
DOES = (
    r"(look(s|ing)? (into|at|after)|(be|get|gets) (back|in touch)|contacts?|checks?|answers?|"
    r"calls?|repl(y|ies)|takes? care|sees? to|handles?|sorts?|investigates?|"
    r"pass (this|it)|find out)\b"
)
PROMISE = re.compile(rf"^(?![^\n]*safety)[^\n]*\b{WHO} [^\n]*\b{DOES}", re.MULTILINE)
# A number in such a place is one that the policy does not vouch for.
DENIED = re.compile(r"\b(not|no|nor|neither|never|instead of|rather than|without)\b[^\n,]*$")
# ... and directly behind such words it is one that the reply itself rejects
REJECTED = re.compile(
    r"\b(not|never|instead of|rather than|need to wait)( in| within| for| up to)? $"
)
CLAUSE = re.compile(r",|(?<!\d)(?<!degrees) (?:and|but|while|whereas) ")


@dataclass(frozen=True)
class Fact:
    """A fact of the policy: all of `says` are found in a reply that states it; `never` contradicts
    it, and so does a quantity that is given for one of its topics `about` and not in `values`.
    """

    fact: str
    says: tuple[re.Pattern, ...]
    never: tuple[re.Pattern, ...]
    about: tuple[re.Pattern, ...] = ()
    values: frozenset = frozenset()
    told: frozenset = frozenset()  # the amounts that the policy's sentence gives

    @property
    def dimension(self):
        return min(quantity.dimension for quantity in self.values) if self.values else None

    def is_like(self, quantity):
        """Whether its own quantities are of the given one's size: a number of years without a
        topic says nothing about a fact of minutes."""
        months = [
            any(measure == "months" for measure, _ in amounts)
            for amounts in (quantity.amounts, *(value.amounts for value in self.values))
        ]
        return self.dimension == quantity.dimension and len(set(months)) == 1

    def allows(self, quantity):
        amounts = frozenset().union(*(value.amounts for value in self.values))
        return quantity.amounts <= loosely(amounts)


def loosely(amounts):
    """With days for working days as well: who says so is not exact, but does not contradict."""
    return amounts | {("time", n * 86400) for measure, n in amounts if measure == "working days"}


def amounts_of(text):
    return frozenset().union(*(quantity.amounts for quantity in quantities(text)))


@dataclass(frozen=True)
class Judgement:
    """`verdicts` has one of VERDICTS for each wanted fact; `false` has a pair for each false
    statement of the reply: its words in plain form, and what the policy says instead.
    """

    verdicts: dict
    false: tuple

    def count(self, verdict):
        """(how many wanted facts have this verdict, how many are wanted)."""
        return list(self.verdicts.values()).count(verdict), len(self.verdicts)


def load(path):
    """The facts of a TOML file, by their ids. The head of data/facts.toml explains the format.

    Raises KitError, with file and id, if the file cannot be read, or if a fact is incomplete or a
    pattern of it is no regular expression.
    """
    path = Path(path)
    try:
        book = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise KitError(f"{path} is not a TOML file: {error}.") from None
    words, facts = book.pop("words", {}), {}
    for category, entries in book.items():
        for name, entry in entries.items():
            try:
                facts[f"{category}.{name}"] = read_fact(entry, words)
            except (KeyError, ValueError) as error:
                problem = f"{error} is missing" if isinstance(error, KeyError) else error
                raise KitError(f"{path.name}, {category}.{name}: {problem}.") from None
    if not facts:
        raise KitError(f"{path} has no fact.")
    return facts


def read_fact(entry, words):
    """A Fact from its table; ValueError or KeyError says what is wrong with it."""

    def compiled(texts, key):
        if not isinstance(texts, list):
            raise ValueError(f"{key!r} is not a list")
        return tuple(compile_pattern(pattern, words) for pattern in texts)

    if not entry["says"]:  # it would take every reply for right
        raise ValueError("'says' is empty")
    values = frozenset()
    for value in entry.get("value", []):
        found = quantities(plain(value))
        if not found:
            raise ValueError(f"{value!r} is no number with a unit")
        values |= set(found)
    patterns = {key: compiled(entry[key], key) for key in ("says", "never")}
    about = compiled(entry.get("about", []), "about")
    told = amounts_of(plain(entry["fact"]))
    return Fact(entry["fact"], **patterns, about=about, values=values, told=told)


def compile_pattern(pattern, words):
    """A regular expression in which {a name} stands for a pattern of `words`, and
    {other than 3|6} for any other number, or for a list with one in it, such as "2, 3 or 6".
    """

    def expand(text):
        # All braces but those of a repetition, such as {0,2}.
        return re.sub(r"\{(?![\d,]+\})([^{}]*)\}", meaning, text)

    def meaning(match):
        name = match[1]
        if name.startswith("other than "):
            numbers = name.removeprefix("other than ").split("|")
            allowed = "|".join(re.escape(number) for number in numbers)
            number = rf"(?<![\d.])(?!(?:{allowed})(?![\d.]))\d[\d.]*"
            return rf"{number}(?: (?:or|to|and) \d[\d.]*)*"
        if name not in words:
            raise ValueError(f"{pattern!r} holds {{{name}}}, which is not in [words]")
        return f"(?:{expand(words[name])})"

    try:
        return re.compile(expand(pattern), re.MULTILINE)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None


def judge(reply, ticket, book):
    """The Judgement of a reply to a Ticket by the facts of `book` (see `load`)."""
    wanted = ticket.facts or ()
    unknown = [name for name in wanted if name not in book]
    if unknown:
        raise KitError(f"{ticket.where}: no fact is called {unknown[0]!r}.")
    text = plain(reply)
    against = {}  # words of the reply by the fact they contradict
    for name, fact in book.items():
        for pattern in fact.never:
            if match := pattern.search(text):
                against.setdefault(name, match[0])
    invented = misplaced(reply, ticket, book, against)
    promise = PROMISE.search(text)
    verdicts = {}
    for name in wanted:
        if name in against:
            verdicts[name] = "false"
        elif all(pattern.search(text) for pattern in book[name].says):
            verdicts[name] = "right"
        else:
            verdicts[name] = "evasive" if promise else "silent"
    false = [(words, book[name].fact) for name, words in against.items()]
    return Judgement(verdicts, tuple(false + invented))


def misplaced(reply, ticket, book, against):
    """The quantities of a reply that its policy does not know, as pairs; those that stand where
    the policy has another are added to `against`.
    """
    known = loosely(frozenset().union(*(fact.told for fact in book.values())))
    asked = plain(re.sub(r"(\d),(\d\d)\b", r"\1.\2", ticket.ticket))
    told = loosely(amounts_of(asked))
    loose = bare_numbers(asked)
    found = " | ".join(against.values())  # what a pattern has found already
    rest = []
    for line in plain(reply, commas=True).split("\n"):
        for quantity in quantities(line):
            words = line[quantity.start : quantity.end]
            new = quantity.amounts - told
            if quantity.dimension != "length":  # 39 on its own may be euros, not hours
                new = {(measure, n) for measure, n in new if n not in loose}
            if not new:
                continue
            names = topic(quantity, line, ticket.facts or (), book)
            aside = re.match(r" (ago|old)\b", line[quantity.end :])
            aside = aside or REJECTED.search(line[: quantity.start])
            if names and not aside and not any(book[name].allows(quantity) for name in names):
                for name in names:
                    against.setdefault(name, words)
            elif not (new <= known or DENIED.search(line[: quantity.start]) or words in found):
                rest.append((words, stated(ticket, quantity.dimension, book)))
    return rest


def topic(quantity, line, wanted, book):
    """The facts that a quantity of a sentence speaks of, by their names.

    It is the topic named nearest to it in its clause, or else the last one before, or else the
    first one after; without any, the wanted facts that have such a quantity.
    """
    cuts = [0, *(cut.end() for cut in CLAUSE.finditer(line)), len(line) + 1]
    begin = max(cut for cut in cuts if cut <= quantity.start)
    end = min(cut for cut in cuts if cut > quantity.start)
    distances = {}
    for name, fact in book.items():
        if fact.dimension != quantity.dimension:
            continue
        for pattern in fact.about:
            for match in pattern.finditer(line):
                # what stands after it counts double: the warranty of 3 years | a repair
                gap = max(quantity.start - match.end(), 2 * (match.start() - quantity.end), 0)
                outside = match.start() < begin, match.start() >= end
                place = (any(outside), outside[1], gap)
                distances[name] = min(place, distances.get(name, place))
    if not distances:
        return [name for name in wanted if book[name].is_like(quantity)]
    best = min(distances.values())
    nearest = [name for name in distances if distances[name] == best]
    if best[0]:  # not in its clause, so that any topic of the sentence may be meant
        nearest = [name for name in distances if book[name].allows(quantity)] or nearest
    return [name for name in nearest if name in wanted] or nearest


def stated(ticket, dimension, book):
    """What the policy says on a ticket: the sentences of the wanted facts, of those with such a
    number if there are any; if no fact is wanted, all sentences of the ticket's category.
    """
    wanted = [book[name] for name in ticket.facts or ()]
    if not wanted:
        wanted = [fact for name, fact in book.items() if name.startswith(f"{ticket.category}.")]
    facts = [fact for fact in wanted if fact.dimension == dimension] or wanted
    return " ".join(dict.fromkeys(fact.fact for fact in facts))
