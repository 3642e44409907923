"""Support tickets as JSON Lines: read, checked line by line, and turned into training examples."""

import json
from dataclasses import dataclass
from pathlib import Path

from qlora_kit.errors import KitError

CATEGORIES = (
    "billing",
    "delivery",
    "returns",
    "account",
    "app",
    "repair",
    "subscription",
    "product",
)
PRIORITIES = ("urgent", "normal", "low")
FIELDS = ("ticket", "category", "priority", "reply")
# The two things that the model is asked to do; the request stands in the system turn.
LABEL_REQUEST = "Label the ticket."
REPLY_REQUEST = "Answer the ticket."


@dataclass(frozen=True)
class Ticket:
    """One row. `where` is its file and line, for messages; `facts` are the names of those that
    its reply must state (see `qlora_kit.data.facts`), None where the row does not say."""

    ticket: str
    category: str
    priority: str
    reply: str
    where: str
    facts: tuple[str, ...] | None = None

    @property
    def label(self):
        """The short target, such as 'billing, urgent'."""
        return f"{self.category}, {self.priority}"

    def example(self, with_reply=False):
        """A prompt-completion example for TRL: the label, or the label and then the reply."""
        request = REPLY_REQUEST if with_reply else LABEL_REQUEST
        answer = f"{self.label}\n{self.reply}" if with_reply else self.label
        return {
            "prompt": prompt(self.ticket, request),
            "completion": [{"role": "assistant", "content": answer}],
        }


def prompt(text, request=LABEL_REQUEST):
    """The turns before the answer, as chat messages."""
    return [{"role": "system", "content": request}, {"role": "user", "content": text}]


def load(path, categories=CATEGORIES, tokenizer=None, max_length=512, facts=None):
    """The good rows of a JSON Lines file as Tickets; each bad one is printed, with its line.

    A row is an object with the text fields ticket, category (one of `categories`), priority (one
    of PRIORITIES) and reply; a field `facts` with a list of names is optional, and if the known
    `facts` are given, it may name no other. With a `tokenizer`, a row whose longest example has
    more than `max_length` tokens is left out as well: the trainer would cut or drop it without a
    word.
    Raises KitError if the file cannot be read or no row of it is good.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise KitError(f"{path} cannot be read: {error.strerror}.") from None
    tickets, problems, seen = [], [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            ticket = Ticket(**check(line, categories, facts), where=where)
            first = seen.setdefault(ticket.ticket.casefold(), where)
            if first != where:
                raise ValueError(f"the same ticket stands at {first} already")
            if tokenizer is not None:
                check_length(ticket, tokenizer, max_length)
        except ValueError as error:
            problems.append(f"  {where}: {error}")
        else:
            tickets.append(ticket)
    if problems:
        total = len(tickets) + len(problems)
        print(f"{path.name}: {len(problems)} of {total} rows are left out:", *problems, sep="\n")
    if not tickets:
        raise KitError(f"{path} has no usable row; each line must be an object with {FIELDS}.")
    return tickets


def check(line, categories, known=None):
    """The fields of one line; ValueError says what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, not an object")
    for field in FIELDS:
        if field not in row:
            raise ValueError(f"the field {field!r} is missing")
        if not isinstance(row[field], str):
            raise ValueError(f"the field {field!r} is not text but {type(row[field]).__name__}")
        if not row[field].strip():
            raise ValueError(f"the field {field!r} is empty")
    for field, allowed in (("category", categories), ("priority", PRIORITIES)):
        if row[field] not in allowed:
            raise ValueError(f"unknown {field} {row[field]!r}; known are {', '.join(allowed)}")
    return {field: row[field].strip() for field in FIELDS} | {"facts": check_facts(row, known)}


def check_facts(row, known):
    """The names of a row's facts, None if it has no such field."""
    if "facts" not in row:
        return None
    names = row["facts"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the field 'facts' is not a list of texts")
    for name in names:
        if known is not None and name not in known:
            raise ValueError(f"unknown fact {name!r}")
    if len(set(names)) < len(names):
        raise ValueError("the field 'facts' names a fact twice")
    return tuple(names)


def check_length(ticket, tokenizer, max_length):
    example = ticket.example(with_reply=True)
    turns = example["prompt"] + example["completion"]
    length = len(tokenizer.apply_chat_template(turns)["input_ids"])
    if length > max_length:
        raise ValueError(f"{length} tokens are too long; at most {max_length} fit")


def examples(tickets, label_every, promise_every):
    """Training examples of tickets, by what their replies are worth.

    A ticket whose reply states a fact teaches label and reply; every `label_every`-th of them
    teaches the label alone as well. A reply without a fact only promises that somebody will look
    into it, and a model that reads many of these says little else: such a ticket teaches its label,
    and only every `promise_every`-th of them label and reply. Tickets of one's own, which name no
    facts, count as the first kind.
    """
    made, factual, others = [], 0, 0
    for ticket in tickets:
        if ticket.facts == ():
            made.append(ticket.example(with_reply=others % promise_every == 0))
            others += 1
        else:
            made.append(ticket.example(with_reply=True))
            if factual % label_every == 0:
                made.append(ticket.example())
            factual += 1
    return made
