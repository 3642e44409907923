"""What answers to held-out tickets are worth."""

import math

from qlora_kit.data import facts
from qlora_kit.data.tickets import REPLY_REQUEST, prompt
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


def score(model, tokenizer, tickets, checklist=None):
    """What a model's answers to held-out tickets are worth, and the labels that it gave.

    Returns (scores, answers). The scores are Estimates: those of `label_scores`;
    `stops_by_itself`, the proportion of labels that end with the stop token; `facts_right`, the
    proportion of the facts of `checklist` (see `facts.load`) that the replies state, None where it
    covers none of the tickets; `perplexity` of the reference answers, label and reply, to every
    fourth ticket (to read all would take a third of the training's time): exp of the mean nats a
    token.
    """
    answers = generate_answers(model, tokenizer, [prompt(t.ticket) for t in tickets], LABEL_TOKENS)
    examples = [ticket.example(with_reply=True) for ticket in tickets[::4]]
    nats = ratio(completion_nll(model, tokenizer, examples))
    scores = label_scores(tickets, [a.text for a in answers])
    scores["stops_by_itself"] = proportion([a.stopped for a in answers])
    scores["facts_right"] = score_facts(model, tokenizer, tickets, checklist)
    scores["perplexity"] = Estimate(*map(math.exp, nats))
    return scores, answers


def score_facts(model, tokenizer, tickets, checklist):
    """The proportion of policy facts that the replies state, over the rows of the checklist."""
    rows = [(ticket, wanted) for ticket, wanted in checklist or () if ticket in tickets]
    if not rows:
        return None
    prompts = [prompt(ticket.ticket, REPLY_REQUEST) for ticket, _ in rows]
    replies = generate_answers(model, tokenizer, prompts, REPLY_TOKENS)
    return clustered(
        [
            facts.facts_right(reply.text, wanted)
            for reply, (_, wanted) in zip(replies, rows, strict=True)
        ]
    )
