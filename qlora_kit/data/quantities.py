"""A text in a plain form, and its quantities: numbers with a unit, such as "within 24 hours"."""

import re
from dataclasses import dataclass

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NUMBERS = {word: number for number, word in enumerate(ONES)}
NUMBERS |= {ten: 20 + 10 * i for i, ten in enumerate(TENS)}
NUMBERS |= {f"{ten} {ONES[one]}": NUMBERS[ten] + one for ten in TENS for one in range(1, 10)}
NUMBERS |= {f"{one} hundred": 100 for one in ("a", "one")}
NUMBERS |= {"a dozen": 12, "first": "1st", "fifth": "5th"}

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
    (r"€ ?(\d+(?:[.,]\d+)?)", r"\1 euros"),
    ("€", " euros"),
    (r"\b([ap])\.m\b\.?", r"\1m"),
    (r"(?<=\d) ?[-\u2013] ?(?=\d)", " to "),
    (r"(?<=\d), ?(?=\d)", " or "),  # 3, 6 or 12
    (r"[()\u2014]| \u2013 | - |:(?!\d)", ","),
    (r"[!?;]|\.(?!\d)", "\n"),  # one sentence a line; the dot of 2.4 stays
    (r"[^\w.,\n]|_", " "),
    (r"(\d)(?!st\b|nd\b|rd\b|th\b)([a-z])", r"\1 \2"),  # 24h
    (" +", " "),
    # the longest first, so that forty five is not 40 and 5
    (rf"\b({'|'.join(sorted(NUMBERS, key=len, reverse=True))})\b", lambda m: str(NUMBERS[m[0]])),
    (r"(\d+) point (\d+)", r"\1.\2"),
    (r"[ ,]*\n[ ,]*", "\n"),
)

# A unit's words, what it measures and how much of that it is. All lengths of time are one measure,
# but a working day is no fixed number of hours, and a month none of days.
UNITS = {
    r"(?:seconds?|secs?|s)": ("time", 1),
    r"(?:minutes?|mins?)": ("time", 60),
    r"(?:hours?|hrs?|h)": ("time", 3600),
    r"(?:calendar )?days?": ("time", 86400),
    r"weeks?": ("time", 604800),
    r"(?:(?:working|business|week) days?|(?:work|week)days?)": ("working days", 1),
    r"months?": ("months", 1),
    r"years?": ("months", 12),
    r"(?:euros?|eur)": ("euros", 1),
    r"(?:dollars?|pounds?|cents?)": ("other money", 1),
    r"percent": ("percent", 1),
    r"(?:lit(?:re|er)s?|l)": ("litres", 1),
    r"(?:degrees?(?: c| celsius)?|c)": ("degrees", 1),
    r"(?:ghz|gigahertz)": ("ghz", 1),
    r"kettles?": ("kettles", 1),
    r"(?:pm|am|oclock)": ("clock", 1),
}
LENGTHS = {"time", "working days", "months"}
NUMBER = r"(?<![\w.])\d+(?:\.\d+)?(?![\d.]*\d|st\b|nd\b|rd\b|th\b)"
LIST = rf"{NUMBER}(?: (?:or|to|and) {NUMBER})*"
NAMED = {
    r"half an hour": ("time", 1800),
    r"quarter of an hour|quarter hour": ("time", 900),
    r"fortnight": ("time", 1209600),
    r"(?:next|following) (?:(?:working|business) |work|week)day": ("working days", 1),
    r"quarter of a year": ("months", 3),
    r"half (?:a )?year": ("months", 6),
    r"(?:within|in|after|for|takes?|lasts?|is|about|wait|or|and) an (?:full |whole )?hour\b": (
        ("time", 3600)
    ),
    r"(?:within|in|after|takes?|or|and) a (?:full |whole )?day\b": ("time", 86400),
    r"(?:within|in|after|takes?|or|for) a (?:full |whole )?week\b": ("time", 604800),
    r"(?:within|in|after|takes?|or|for|and) a (?:full |whole )?month\b": ("months", 1),
    r"(?:within|in|after|takes?|or|for|and) a (?:full |whole )?year\b": ("months", 12),
}


@dataclass(frozen=True)
class Quantity:
    """What a text gives as a number with a unit: `amounts` are (measure, how much), each one
    of a list such as "3, 6 or 12 months"; `start` and `end` are its place in the text."""

    start: int
    end: int
    amounts: frozenset

    @property
    def dimension(self):
        """What it can be compared with: every length of time is one dimension."""
        measure = min(self.amounts)[0]
        return "length" if measure in LENGTHS else measure


def plain(text, commas=False):
    """A text in small letters, numbers as digits, one sentence a line, no other punctuation.

    With `commas` these stay.
    """
    text = text.casefold()
    for pattern, replacement in SPELLINGS:
        text = re.sub(pattern, replacement, text)
    if not commas:
        text = re.sub(" +", " ", text.replace(",", " "))
        text = re.sub(" ?\n ?", "\n", text)
    return text.strip(" ,\n")


def quantities(text):
    """The quantities of a plain text, in their order."""
    found = []
    for unit, (measure, size) in UNITS.items():
        for match in re.finditer(
            rf"({LIST})(?: (?:full|whole|more|long|short|straight))? {unit}\b", text
        ):
            numbers = re.findall(r"\d+(?:\.\d+)?", match[1])
            amounts = frozenset((measure, float(number) * size) for number in numbers)
            found.append(Quantity(match.start(), match.end(), amounts))
    for words, amount in NAMED.items():
        for match in re.finditer(rf"\b(?:{words})", text):
            found.append(Quantity(match.start(), match.end(), frozenset([amount])))
    for match in re.finditer(rf"\b(?:version|release) ({NUMBER})", text):
        amount = "version", float(match[1])
        found.append(Quantity(match.start(), match.end(), frozenset([amount])))
    for match in re.finditer(
        rf"\b(?:steps|increments|intervals) of ({NUMBER})(?= (?!degrees?)|$)", text, re.MULTILINE
    ):
        amount = "degrees", float(match[1])
        found.append(Quantity(match.start(), match.end(), frozenset([amount])))
    return sorted(found, key=lambda quantity: quantity.start)


def bare_numbers(text):
    """The numbers of a plain text that have no unit, but for the small ones of "which one"."""
    taken = quantities(text)
    found = {
        float(match[0])
        for match in re.finditer(NUMBER, text)
        if not any(quantity.start <= match.start() < quantity.end for quantity in taken)
    }
    return {number for number in found if number > 10}
