"""Answers in batches, and their scores."""

import math

import pytest
import torch

from qlora_kit import scoring, tickets


@pytest.fixture(scope="module")
def rows():
    return tickets.load(tickets.DATA / "tickets_dev.jsonl")[:5]


def test_a_batch_answers_as_one_row_at_a_time_does(smollm2, rows):
    model, tokenizer = smollm2
    prompts = [tickets.prompt(row.ticket) for row in rows]
    together = scoring.answer(model, tokenizer, prompts, 8)
    alone = [scoring.answer(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    assert together == alone


def test_an_answer_knows_whether_it_stopped(smollm2):
    model, tokenizer = smollm2
    prompt = [{"role": "user", "content": "Say yes."}]
    [short] = scoring.answer(model, tokenizer, [prompt], 1)
    [whole] = scoring.answer(model, tokenizer, [prompt], 200)
    assert not short.stopped
    assert whole.stopped
    assert "<|" not in whole.text


def test_perplexity_is_that_of_the_library(smollm2, rows):
    """Batched, padded, logits for the end only: the same as the model's own loss, row by row."""
    model, tokenizer = smollm2
    examples = [row.example(with_reply=True) for row in rows]
    total = count = 0
    for example in examples:
        prompt = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True)
        turns = example["prompt"] + example["completion"]
        ids = torch.tensor([tokenizer.apply_chat_template(turns)["input_ids"]])
        labels = ids.clone()
        labels[:, : len(prompt["input_ids"])] = -100
        learnt = (labels != -100).sum().item()
        with torch.inference_mode():
            total += model(ids, labels=labels).loss.item() * learnt
        count += learnt
    measured = scoring.perplexity(model, tokenizer, examples, batch=2)
    assert measured == pytest.approx(math.exp(total / count), rel=1e-4)


def test_score_counts_what_it_says(monkeypatch, rows):
    texts = [rows[0].label, f"{rows[1].category}, nonsense", "nonsense", "", rows[4].label + "\nx"]
    answers = [scoring.Answer(text, stopped=i < 4) for i, text in enumerate(texts)]
    monkeypatch.setattr(scoring, "answer", lambda *_: answers)
    monkeypatch.setattr(scoring, "perplexity", lambda *_: 2.0)
    scores, given = scoring.score(None, None, rows)
    assert given == answers
    assert scores == {
        "category_accuracy": 3 / 5,
        "exact_match": 1 / 5,
        "stops_by_itself": 4 / 5,
        "perplexity": 2.0,
        "rows": 5,
    }
