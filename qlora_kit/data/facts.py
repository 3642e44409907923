"""Which facts of the policy a reply gets right, by a checklist that was written by hand."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from qlora_kit.errors import KitError

UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBERS = {word: number for number, word in enumerate(UNITS)}
NUMBERS |= {ten: 20 + 10 * i for i, ten in enumerate(TENS)}
NUMBERS |= {f"{ten} {UNITS[one]}": NUMBERS[ten] + one for ten in TENS for one in range(1, 10)}
NUMBERS |= {f"{one} hundred": 100 for one in ("a", "one")}
NUMBERS |= {"first": "1st", "fifth": "5th"}

# In this order, on small letters.
SPELLINGS = (
    (r"\s+", " "),
    ("[\u2019']", "'"),  # a printer's apostrophe is one as well
    (r"\bcan't\b|\bcannot\b", "can not"),
    (r"\bwon't\b", "will not"),
    (r"n't\b", " not"),
    ("'", ""),
    ("%", " percent"),
    ("°", " degrees "),
    (r"(?<=\d), ?(?=\d)", " or "),  # 3, 6 or 12
    (r"[!?;]|\.(?!\d)", "\n"),  # one sentence a line; the dot of 2.4 stays
    (r"[^\w.\n]|_", " "),
    (r"(\d)(?!st\b|nd\b|rd\b|th\b)([a-z])", r"\1 \2"),  # 24h
    (" +", " "),
    # the longest first, so that forty five is not 40 and 5
    (rf"\b({'|'.join(sorted(NUMBERS, key=len, reverse=True))})\b", lambda m: str(NUMBERS[m[0]])),
    (r"(\d+) point (\d+)", r"\1.\2"),
    (r" ?\n ?", "\n"),
)


@dataclass(frozen=True)
class Fact:
    """A fact that a reply must get right: all of `says` are found in it, and none of `never`."""

    fact: str
    says: tuple[re.Pattern, ...]
    never: tuple[re.Pattern, ...]

    def is_right(self, reply):
        """Whether a reply states this fact and nothing that contradicts it."""
        text = plain(reply)
        says = all(pattern.search(text) for pattern in self.says)
        return says and not any(pattern.search(text) for pattern in self.never)


def plain(text):
    """A text in small letters, numbers as digits, one sentence a line, no other punctuation."""
    text = text.casefold()
    for pattern, replacement in SPELLINGS:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def load(path, tickets):
    """The checklist of a TOML file for rows of `tickets`: a list of (Ticket, list of Fact).

    The head of data/facts_test.toml explains the format. Raises KitError, with file and row, if
    the file cannot be read, if a row's line and opening words are not those of a ticket, or if a
    fact is incomplete or a pattern of it is no regular expression.
    """
    path = Path(path)
    try:
        book = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise KitError(f"{path} is not a TOML file: {error}.") from None
    by_line = {int(ticket.where.rpartition(":")[2]): ticket for ticket in tickets}
    checklist = []
    for row in book.get("row", []):
        try:
            ticket = by_line.get(row["line"])
            if ticket is None or not ticket.ticket.startswith(row["opening"]):
                raise ValueError(f"no ticket on that line opens with {row['opening']!r}")
            facts = [read_fact(entry, book.get("words", {})) for entry in row["facts"]]
        except (KeyError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise KitError(f"{path.name}, row of line {row.get('line')}: {problem}.") from None
        checklist.append((ticket, facts))
    if not checklist:
        raise KitError(f"{path} has no [[row]].")
    return checklist


def read_fact(entry, words):
    """A Fact from its table; ValueError or KeyError says what is wrong with it."""

    def compiled(key):
        if not isinstance(entry[key], list):
            raise ValueError(f"{key!r} is not a list")
        return tuple(compile_pattern(pattern, words) for pattern in entry[key])

    if not entry["says"]:  # it would take every reply for right
        raise ValueError("'says' is empty")
    return Fact(entry["fact"], compiled("says"), compiled("never"))


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


def facts_right(reply, facts):
    """(right, total): how many of a row's facts its reply gets right, of how many.

    A label in front of the reply does no harm.
    """
    return sum(fact.is_right(reply) for fact in facts), len(facts)
