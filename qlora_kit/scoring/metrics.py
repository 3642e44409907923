"""What answers to held-out tickets are worth."""

import math
from typing import NamedTuple

from qlora_kit.data import facts
from qlora_kit.data.tickets import REPLY_REQUEST, Ticket, prompt
from qlora_kit.scoring.generation import completion_nll, generate_answers
from qlora_kit.scoring.intervals import Estimate, clustered, proportion, ratio

LABEL_TOKENS = 10  # a label and its stop have at most 5; an answer that runs on is cut here
REPLY_TOKENS = 80  # the longest reference, label and reply, has about 70


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


def score(model, tokenizer, tickets, book=None, answered=None):
    """What a model's answers to held-out tickets are worth: (scores, answers, replies).

    The scores are Estimates: those of `label_scores`; `stops_by_itself`, the proportion of labels
    that end with the stop token; those of `fact_scores`, if `book` (see `facts.load`) is given and
    a ticket names facts of it; `perplexity` of the reference answers, label and reply, to every
    fourth ticket (to read all would take a third of the training's time): exp of the mean nats a
    token. The answers are the labels given, the replies those of `judge_replies`, with `answered`.
    """
    answers = generate_answers(model, tokenizer, [prompt(t.ticket) for t in tickets], LABEL_TOKENS)
    examples = [ticket.example(with_reply=True) for ticket in tickets[::4]]
    nats = ratio(completion_nll(model, tokenizer, examples))
    replies = judge_replies(model, tokenizer, tickets, book, answered)
    scores = label_scores(tickets, [a.text for a in answers])
    scores["stops_by_itself"] = proportion([a.stopped for a in answers])
    scores |= fact_scores(replies)
    scores["perplexity"] = Estimate(*map(math.exp, nats))
    return scores, answers, replies


class Reply(NamedTuple):
    """An answer that a model gave, and what the policy says about the reply in it."""

    ticket: Ticket
    text: str
    judgement: facts.Judgement


def judge_replies(model, tokenizer, tickets, book, answered=None):
    """A Reply to each ticket that names facts of `book`, or to the first `answered` of them; none
    without a book."""
    asked = [ticket for ticket in tickets if ticket.facts][:answered] if book else []
    if not asked:
        return []
    prompts = [prompt(ticket.ticket, REPLY_REQUEST) for ticket in asked]
    texts = [a.text for a in generate_answers(model, tokenizer, prompts, REPLY_TOKENS)]
    return [
        Reply(ticket, text, facts.judge(without_label(text), ticket, book))
        for ticket, text in zip(asked, texts, strict=True)
    ]


def without_label(text):
    """The reply in an answer: what stands below its label, or all of it where it has one line.

    A label is no statement: "delivery, normal" says nothing about a normal delivery.
    """
    return text.partition("\n")[2] or text


def fact_scores(replies):
    """What replies are worth, as Estimates; nothing if there are none.

    `facts_right` and `facts_evasive`: the proportions of the wanted facts that are stated, and of
    those that are left to a colleague. `facts_false`: the proportion of the replies that hold a
    false statement, about whatever it is.
    """
    if not replies:
        return {}
    judged = [reply.judgement for reply in replies]
    return {
        "facts_right": clustered([judgement.count("right") for judgement in judged]),
        "facts_false": proportion([bool(judgement.false) for judgement in judged]),
        "facts_evasive": clustered([judgement.count("evasive") for judgement in judged]),
    }
