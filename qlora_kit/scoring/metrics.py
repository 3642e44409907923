"""What answers to held-out tickets are worth."""

import math
from typing import NamedTuple

from qlora_kit.data import facts
from qlora_kit.data.tickets import Ticket, facts_of, label_of, prompt, reply_prompt
from qlora_kit.scoring.generation import answer_nll, generate_answers
from qlora_kit.scoring.intervals import Estimate, clustered, proportion, ratio

LABEL_TOKENS = 10  # a label and its stop have at most 5; an answer that runs on is cut here
FILING_TOKENS = 28  # label, names of facts and stop; the longest reference has 25
REPLY_TOKENS = 60  # the longest reference has 44


def category(text):
    """The category in an answer such as 'billing, urgent'."""
    return text.partition(",")[0].strip()


def correct(tickets, texts):
    """Which labels are right: a list of True and False for each way to look at them.

    `category_accuracy` looks at the category alone; `exact_match` wants category and priority,
    letter for letter.
    """
    pairs = list(zip(tickets, texts, strict=True))
    return {
        "category_accuracy": [category(text) == ticket.category for ticket, text in pairs],
        "exact_match": [text == ticket.label for ticket, text in pairs],
    }


def label_scores(tickets, texts):
    """The proportions of labels that are right, in both ways of `correct`, as Estimates."""
    return {name: proportion(right) for name, right in correct(tickets, texts).items()}


def score(model, tokenizer, tickets, book=None, answered=None, policy=None):
    """What a model's answers to held-out tickets are worth: (scores, filings, replies).

    The scores are Estimates: those of `label_scores`; `stops_by_itself`, the proportion of filings
    that end with the stop token; those of `fact_scores`, if `book` (see `facts.load`) is given and
    a ticket names facts of it; `perplexity` of the reference answers, filing and reply, to every
    fourth ticket (to read all would take a third of the training's time): exp of the mean nats a
    token. The filings are Answers in the order of the tickets, the replies those of
    `judge_replies`, with `answered`. `policy` opens the book (see `tickets.reply_prompt`).
    """
    prompts = [prompt(ticket.ticket) for ticket in tickets]
    filings = generate_answers(model, tokenizer, prompts, FILING_TOKENS)
    examples = [ticket.example(True, policy) for ticket in tickets[::4]]
    nats = ratio(answer_nll(model, tokenizer, examples))
    replies = judge_replies(model, tokenizer, tickets, filings, book, answered, policy)
    scores = label_scores(tickets, [label_of(filing.text) for filing in filings])
    scores["stops_by_itself"] = proportion([filing.stopped for filing in filings])
    scores |= fact_scores(replies)
    scores["perplexity"] = Estimate(*map(math.exp, nats))
    return scores, filings, replies


class Reply(NamedTuple):
    """A ticket, how a model filed it, what it replied, and what the policy says about that."""

    ticket: Ticket
    filing: str
    text: str
    judgement: facts.Judgement


def judge_replies(model, tokenizer, tickets, filings, book, answered=None, policy=None):
    """A Reply to each ticket that names facts of `book`, or to the first `answered` of them; none
    without a book. Each goes on from the model's own filing of the ticket, right or wrong."""
    pairs = zip(tickets, filings, strict=True)
    asked = [(t, filing.text) for t, filing in pairs if t.facts][:answered] if book else []
    if not asked:
        return []
    prompts = [reply_prompt(ticket.ticket, filing, policy) for ticket, filing in asked]
    texts = [a.text for a in generate_answers(model, tokenizer, prompts, REPLY_TOKENS)]
    return [
        Reply(ticket, filing, text, facts.judge(text, ticket, book))
        for (ticket, filing), text in zip(asked, texts, strict=True)
    ]


def fact_scores(replies):
    """What replies are worth, as Estimates; nothing if there are none.

    `facts_named`: the proportion of the wanted facts that the filing names. `facts_right` and
    `facts_evasive`: the proportions of them that the reply states, and leaves to a colleague.
    `facts_false`: the proportion of the replies that hold a false statement, about whatever it is.
    """
    if not replies:
        return {}
    judged = [reply.judgement for reply in replies]
    named = [
        [name in facts_of(reply.filing) for name in reply.judgement.verdicts] for reply in replies
    ]
    return {
        "facts_named": clustered([(sum(some), len(some)) for some in named]),
        "facts_right": clustered([judgement.count("right") for judgement in judged]),
        "facts_false": proportion([bool(judgement.false) for judgement in judged]),
        "facts_evasive": clustered([judgement.count("evasive") for judgement in judged]),
    }
