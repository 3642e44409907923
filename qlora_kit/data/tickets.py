"""Support tickets as JSON Lines: read, checked line by line, and turned into training examples."""

import itertools
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
# What the model is asked to do: the first request stands in the system turn, the second one is a
# turn of the user's, after the ticket has been filed.
FILE_REQUEST = "File the ticket."
REPLY_REQUEST = "Now answer it."
NO_FACTS = "none"


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
        """Category and priority, such as 'billing, urgent'."""
        return f"{self.category}, {self.priority}"

    @property
    def filing(self):
        """What the model learns to say first: the label and, in a second line, the names of the
        facts that the reply needs; the label alone where the row does not say which."""
        if self.facts is None:
            return self.label
        return f"{self.label}\n{', '.join(self.facts) or NO_FACTS}"

    def example(self, with_reply=False, policy=None):
        """A conversation for TRL: how the ticket is filed, and on request how it is answered.
        `policy` as in `reply_prompt`."""
        turns = [*prompt(self.ticket), {"role": "assistant", "content": self.filing}]
        if with_reply:
            turns = [
                *reply_prompt(self.ticket, self.filing, policy),
                {"role": "assistant", "content": self.reply},
            ]
        return {"messages": turns}


def prompt(text, request=FILE_REQUEST):
    """The turns before a ticket is filed, as chat messages."""
    return [{"role": "system", "content": request}, {"role": "user", "content": text}]


def reply_prompt(text, filing, policy=None):
    """The turns before a ticket is answered: it has been filed, by whomever.

    `policy` are the policy's sentences by the names of their facts. If it is given, the book is
    open: the request holds the sentences of the facts that the filing names.
    """
    sentences = [policy[name] for name in facts_of(filing) if name in policy] if policy else []
    rules = [f"Our rules: {' '.join(dict.fromkeys(sentences))}"] if sentences else []
    return [
        *prompt(text),
        {"role": "assistant", "content": filing},
        {"role": "user", "content": "\n".join([REPLY_REQUEST, *rules])},
    ]


def label_of(filing):
    """The label in what a model says when it files a ticket: the first line."""
    return filing.partition("\n")[0].strip()


def facts_of(filing):
    """The names of the facts in the second line of a filing, each once."""
    second = filing.partition("\n")[2].partition("\n")[0]
    names = dict.fromkeys(name.strip() for name in second.split(","))
    return [name for name in names if name not in ("", NO_FACTS)]


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
    turns = ticket.example(with_reply=True)["messages"]
    length = len(tokenizer.apply_chat_template(turns)["input_ids"])
    if length > max_length:
        raise ValueError(f"{length} tokens are too long; at most {max_length} fit")


def examples(tickets, promise_every, policy=None):
    """Training examples of tickets: every one teaches how it is filed, most how they are answered.

    A reply without a fact only promises that somebody will look into it, and a model that reads
    many of these says little else: of the tickets whose reply states none, only every
    `promise_every`-th teaches its reply. `policy` as in `reply_prompt`.
    """
    promises = itertools.count()
    return [
        ticket.example(ticket.facts != () or next(promises) % promise_every == 0, policy)
        for ticket in tickets
    ]
