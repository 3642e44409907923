"""Answers in batches, what they are worth, and how sure that is."""

import contextlib
import copy
import itertools
import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from tqdm import tqdm

from qlora_kit import facts
from qlora_kit.tickets import REPLY_REQUEST, prompt

LABEL_TOKENS = 10  # a label and its stop have at most 5; an answer that runs on is cut here
REPLY_TOKENS = 80  # the longest reference, label and reply, has about 70


class Estimate(NamedTuple):
    """A figure measured on some rows, and the ends of its 95 % interval.

    The interval covers the choice of the rows, not that of the seed.
    """

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and whether it ended by a stop token and not by the limit."""

    text: str
    stopped: bool


def answer(model, tokenizer, prompts, max_new_tokens, batch=50):
    """Greedy answers to a list of chat prompts, as a list of Answer in the same order.

    What all prompts begin with is read once, and its keys and values are kept. The rest is padded
    on its left, so that every answer starts in the same column, and sorted by length, so that
    little is padded. On 4-bit weights a batch pays the dequantisation once.
    """
    import torch

    rows = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        for prompt in prompts
    ]
    columns = zip(*(row[:-1] for row in rows), strict=False) if len(rows) > batch else ()
    shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
    answers = [None] * len(rows)
    stops = set(model.generation_config.eos_token_id)
    with reading(model):
        begin = torch.tensor([rows[0][:shared]], dtype=torch.long, device=model.device)
        kept = model(begin, use_cache=True, logits_to_keep=1).past_key_values if shared else None
        for chosen in batches(rows, batch, "Answering"):
            rest = tokenizer.pad(
                {"input_ids": [rows[i][shared:] for i in chosen]},
                padding_side="left",
                return_tensors="pt",
            ).to(model.device)
            begins = begin.expand(len(chosen), -1)
            cache = copy.deepcopy(kept)
            if cache is not None:
                cache.batch_repeat_interleave(len(chosen))
            output = model.generate(
                input_ids=torch.cat([begins, rest["input_ids"]], dim=1),
                attention_mask=torch.cat([torch.ones_like(begins), rest["attention_mask"]], dim=1),
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            new = output[:, shared + rest["input_ids"].shape[1] :].tolist()
            for i, tokens in zip(chosen, new, strict=True):
                text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
                answers[i] = Answer(text, not stops.isdisjoint(tokens))
    return answers


@contextlib.contextmanager
def reading(model):
    """The model without dropout and without gradients; afterwards it is in the mode that it was.

    Its head gets rows that lie side by side. PyTorch 2.13 multiplies a slice of a batch by a frozen
    weight one row at a time, and in bfloat16 copies the weight for each: 17 GB for Gemma's head
    and 50 rows.
    """
    import torch

    was_training = model.training
    model.eval()
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        with torch.inference_mode():
            yield
    finally:
        hook.remove()
        model.train(was_training)


def batches(rows, size, what):
    """The numbers of the rows in batches, sorted by length, so that little is padded.

    A progress bar says what is done, and goes away afterwards; there is none for a single batch.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    starts = range(0, len(order), size)
    for start in tqdm(starts, desc=what, leave=False, disable=len(starts) == 1):
        yield order[start : start + size]


def surprise(model, tokenizer, examples, batch=8):
    """How unlikely each example's completion is to the model: a list of (nats, tokens).

    Nats are the negative log-likelihood of the completion's tokens, its stop token included.
    Logits are made for the end of each row only: for Gemma a full set would take 1 MiB a token.
    """
    import torch

    rows, counts = [], []
    for example in examples:
        begin = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True)
        full = tokenizer.apply_chat_template(example["prompt"] + example["completion"])
        rows.append(full["input_ids"])
        counts.append(len(full["input_ids"]) - len(begin["input_ids"]))
    result = [None] * len(rows)
    with reading(model):
        for chosen in batches(rows, batch, "Reading"):
            inputs = tokenizer.pad(
                {"input_ids": [rows[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            logits = model(**inputs, logits_to_keep=max(counts[i] for i in chosen) + 1).logits
            for row, i in enumerate(chosen):
                target = torch.tensor(rows[i][-counts[i] :], device=logits.device)
                guess = logits[row, -counts[i] - 1 : -1].float()
                nats = torch.nn.functional.cross_entropy(guess, target, reduction="sum").item()
                result[i] = nats, counts[i]
    return result


def likeliest(model, tokenizer, prompts, labels, batch=4):
    """For each prompt, the one of the labels that the model would say with the highest probability.

    This is the best that can be read out of a model that was never told the form of the answer.
    Each prompt is read once; its keys and values are kept, and what labels begin with is tried
    after them: "app, low" and "app, urgent" differ in their last token alone. No label may begin
    with another one, since it is not asked whether the model would stop there.
    """
    import torch

    begins = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        for prompt in prompts
    ]
    endings = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    stems = [list(stem) for stem in sorted({tuple(tokens[:-1]) for tokens in endings})]
    rest = tokenizer.pad({"input_ids": stems}, padding_side="right", return_tensors="pt")
    rest = rest.to(model.device)
    best = []
    with reading(model):
        for chosen in batches(begins, batch, "Comparing"):
            read = tokenizer.pad(
                {"input_ids": [begins[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            output = model(**read, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            cache.batch_repeat_interleave(len(stems))
            mask = read["attention_mask"].repeat_interleave(len(stems), 0)
            mask = torch.cat([mask, rest["attention_mask"].repeat(len(chosen), 1)], dim=1)
            after = model(
                input_ids=rest["input_ids"].repeat(len(chosen), 1),
                attention_mask=mask,
                past_key_values=cache,
            ).logits
            after = after.view(len(chosen), len(stems), *after.shape[1:])
            first = output.logits[:, 0].float().log_softmax(1)
            # one prompt at a time: Gemma's logits take 1 MiB a token, and a copy is as large
            norms = torch.stack([logits.float().logsumexp(2) for logits in after])
            sums = []
            for begin, *others in endings:
                stem, places = stems.index([begin, *others][:-1]), list(range(len(others)))
                chances = after[:, stem, places, others].float() - norms[:, stem, places]
                sums.append(first[:, begin] + chances.sum(1))
            best += zip(chosen, torch.stack(sums).argmax(0).tolist(), strict=True)
    return [labels[label] for _, label in sorted(best)]


def category(text):
    """The category in an answer such as 'billing, urgent'."""
    return text.partition(",")[0].strip()


def label_scores(tickets, texts):
    """The shares of labels that are right, as Estimates.

    `category_accuracy` looks at the category alone; `exact_match` wants category and priority,
    letter for letter.
    """
    pairs = list(zip(tickets, texts, strict=True))
    return {
        "category_accuracy": share([category(text) == ticket.category for ticket, text in pairs]),
        "exact_match": share([text == ticket.label for ticket, text in pairs]),
    }


def score(model, tokenizer, tickets, checklist=None):
    """What a model's answers to held-out tickets are worth, and the labels that it gave.

    Returns (scores, answers). The scores are Estimates: those of `label_scores`;
    `stops_by_itself`, the share of labels that end with the stop token; `facts_right`, the share
    of the facts of `checklist` (see `facts.load`) that the replies state, None where it covers
    none of the tickets; `perplexity` of the reference answers, label and reply, to every fourth
    ticket (to read them all would take as long as a third of the training): exp of the mean nats a
    token.
    """
    answers = answer(model, tokenizer, [prompt(t.ticket) for t in tickets], LABEL_TOKENS)
    nats = ratio(surprise(model, tokenizer, [t.example(with_reply=True) for t in tickets[::4]]))
    scores = label_scores(tickets, [a.text for a in answers])
    scores["stops_by_itself"] = share([a.stopped for a in answers])
    scores["facts_right"] = score_facts(model, tokenizer, tickets, checklist)
    scores["perplexity"] = Estimate(*map(math.exp, nats))
    return scores, answers


def score_facts(model, tokenizer, tickets, checklist):
    """The share of policy facts that the replies state, over the rows of the checklist."""
    rows = [(ticket, wanted) for ticket, wanted in checklist or () if ticket in tickets]
    if not rows:
        return None
    prompts = [prompt(ticket.ticket, REPLY_REQUEST) for ticket, _ in rows]
    replies = answer(model, tokenizer, prompts, REPLY_TOKENS)
    return ratio(
        [
            facts.facts_right(reply.text, wanted)
            for reply, (_, wanted) in zip(replies, rows, strict=True)
        ]
    )


def share(right):
    """The share of True in a list, with the interval of Wilson (1927, JASA 22, page 209)."""
    rows, z = len(right), 1.96
    value = sum(right) / rows
    middle = (value + z * z / (2 * rows)) / (1 + z * z / rows)
    margin = z / (1 + z * z / rows) * math.sqrt(value * (1 - value) / rows + (z / (2 * rows)) ** 2)
    return Estimate(value, max(0.0, middle - margin), min(1.0, middle + margin))


def ratio(pairs, draws=2000):
    """The sum of the first over the sum of the second numbers, a pair for each row.

    The interval is the bootstrap's (Efron 1979, Annals of Statistics 7): whole rows are drawn
    again, since the tokens or the facts of one row belong together. The draws are seeded.
    """

    def value(rows):
        return sum(first for first, _ in rows) / sum(second for _, second in rows)

    rng = random.Random(0)
    drawn = sorted(value(rng.choices(pairs, k=len(pairs))) for _ in range(draws))
    return Estimate(value(pairs), drawn[int(0.025 * draws)], drawn[int(0.975 * draws)])
