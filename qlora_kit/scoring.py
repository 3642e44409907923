"""Answers in batches, and what they are worth."""

import math
from dataclasses import dataclass

from tqdm import tqdm

from qlora_kit.tickets import prompt

LABEL_TOKENS = 16  # a label has about 5; an answer that runs on is cut here


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and whether it ended by a stop token and not by the limit."""

    text: str
    stopped: bool


def answer(model, tokenizer, prompts, max_new_tokens, batch=40):
    """Greedy answers to a list of chat prompts, as a list of Answer in the same order.

    The prompts are padded on the left, so that every answer starts in the same column, and sorted
    by length, so that little is padded. On 4-bit weights a batch pays the dequantisation once.
    """
    import torch

    texts = [
        tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers = [None] * len(texts)
    stops = set(model.generation_config.eos_token_id)
    was_training = model.training
    model.eval()
    for start in progress(range(0, len(order), batch), "Answering"):
        chosen = order[start : start + batch]
        inputs = tokenizer(
            [texts[i] for i in chosen],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True
            )
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        for i, tokens in zip(chosen, new, strict=True):
            text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            answers[i] = Answer(text, not stops.isdisjoint(tokens))
    model.train(was_training)
    return answers


def progress(batches, what):
    """A progress bar over batches that goes away when it is done; none for a single batch."""
    return tqdm(batches, desc=what, leave=False, disable=len(batches) == 1)


def perplexity(model, tokenizer, examples, batch=8):
    """exp of the mean negative log-likelihood of the completions' tokens, stop token included.

    Logits are made for the end of each row only: for Gemma a full set would take 1 MiB a token.
    """
    import torch

    total, count = 0.0, 0
    rows = []
    for example in examples:
        prompt = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True)
        full = tokenizer.apply_chat_template(example["prompt"] + example["completion"])
        rows.append((full["input_ids"], len(full["input_ids"]) - len(prompt["input_ids"])))
    rows.sort(key=lambda row: len(row[0]))
    was_training = model.training
    model.eval()
    for start in progress(range(0, len(rows), batch), "Reading"):
        chosen = rows[start : start + batch]
        inputs = tokenizer.pad(
            {"input_ids": [ids for ids, _ in chosen]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        keep = max(learnt for _, learnt in chosen) + 1
        with torch.inference_mode():
            logits = model(**inputs, logits_to_keep=keep).logits
        for row, (ids, learnt) in enumerate(chosen):
            target = torch.tensor(ids[-learnt:], device=logits.device)
            guess = logits[row, -learnt - 1 : -1].float()
            total += torch.nn.functional.cross_entropy(guess, target, reduction="sum").item()
            count += learnt
    model.train(was_training)
    return math.exp(total / count)


def score(model, tokenizer, tickets):
    """What a model's answers to held-out tickets are worth, and the answers.

    Returns (scores, answers). The shares in `scores` are of all rows: `category_accuracy`,
    `exact_match` (category and priority), `stops_by_itself`; `perplexity` is that of the reference
    answers, label and reply; `rows` their number.
    """
    prompts = [prompt(ticket.ticket) for ticket in tickets]
    answers = answer(model, tokenizer, prompts, LABEL_TOKENS)
    pairs = list(zip(tickets, answers, strict=True))
    rows = len(tickets)
    return {
        "category_accuracy": sum(category(a.text) == t.category for t, a in pairs) / rows,
        "exact_match": sum(a.text == t.label for t, a in pairs) / rows,
        "stops_by_itself": sum(a.stopped for a in answers) / rows,
        "perplexity": perplexity(model, tokenizer, [t.example(with_reply=True) for t in tickets]),
        "rows": rows,
    }, answers


def category(text):
    """The category in an answer such as 'billing, urgent'."""
    return text.partition(",")[0].strip()
