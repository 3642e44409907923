"""Answers in batches, their scores, and how sure they are."""

import dataclasses
import math

import pytest
import tiny_run
import torch

from qlora_kit import scoring
from qlora_kit.data import facts, tickets
from qlora_kit.paths import DATA
from qlora_kit.scoring import metrics


@pytest.fixture(scope="module")
def rows():
    return tickets.load(DATA / "tickets_dev.jsonl")[:5]


def test_a_batch_answers_as_one_row_at_a_time_does(smollm2, rows):
    model, tokenizer = smollm2
    prompts = [tickets.prompt(row.ticket) for row in rows]
    together = scoring.generate_answers(model, tokenizer, prompts, 8)
    alone = [scoring.generate_answers(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    assert together == alone


def test_what_all_prompts_begin_with_is_read_once_and_changes_no_answer(smollm2, rows):
    """More prompts than a batch: with a long beginning in common, and of different lengths."""
    model, tokenizer = smollm2
    shot = [
        {"role": "user", "content": rows[0].ticket},
        {"role": "assistant", "content": rows[0].label},
    ]
    prompts = []
    for row in rows:
        system, user = tickets.prompt(row.ticket)
        prompts.append([system, *shot, user])
    alone = [scoring.generate_answers(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    read = []
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs.get("input_ids")), with_kwargs=True
    )
    together = scoring.generate_answers(model, tokenizer, prompts, 8, batch=2)
    hook.remove()
    assert together == alone
    longest = max(ids.shape[1] for ids in read if ids is not None)
    prompt = tokenizer.apply_chat_template(prompts[0], add_generation_prompt=True)["input_ids"]
    assert longest < len(prompt), "the common beginning was read again with each batch"


def test_an_answer_knows_whether_it_stopped(smollm2):
    model, tokenizer = smollm2
    prompt = [{"role": "user", "content": "Say yes."}]
    [short] = scoring.generate_answers(model, tokenizer, [prompt], 1)
    [whole] = scoring.generate_answers(model, tokenizer, [prompt], 200)
    assert not short.stopped
    assert whole.stopped
    assert "<|" not in whole.text


def own_loss(model, tokenizer, row, with_reply):
    """(nats, tokens) of a conversation's answers by the model's own loss, one row, not padded.

    What the assistant says is found by the turns that stand before it.
    """
    messages = row.example(with_reply)["messages"]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    ids = torch.tensor([whole])
    labels = torch.full_like(ids, -100)
    for place, turn in enumerate(messages):
        if turn["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:place], add_generation_prompt=True)
            until = tokenizer.apply_chat_template(messages[: place + 1])["input_ids"]
            start, end = len(before["input_ids"]), len(until) - 1  # the newline after the stop
            labels[:, start:end] = ids[:, start:end]
    learnt = (labels != -100).sum().item()
    with torch.inference_mode():
        return model(ids, labels=labels).loss.item() * learnt, learnt


def test_surprise_is_the_model_s_own_loss(smollm2, rows):
    """Batched, padded, sorted, logits for the end only: the same, row by row."""
    model, tokenizer = smollm2
    asked = [(row, i % 2 == 0) for i, row in enumerate(rows)]
    examples = [row.example(with_reply) for row, with_reply in asked]
    measured = scoring.answer_nll(model, tokenizer, examples, batch=2)
    for (row, with_reply), (nats, learnt) in zip(asked, measured, strict=True):
        own_nats, own_learnt = own_loss(model, tokenizer, row, with_reply)
        assert nats == pytest.approx(own_nats, rel=1e-4)
        assert learnt == own_learnt


def test_the_likeliest_label_is_the_one_with_the_smallest_loss(smollm2, rows):
    """Through kept keys and values, and labels of different lengths in one batch."""
    model, tokenizer = smollm2
    labels = ["billing, low", "app, urgent", "app, low", "repair, normal", "subscription, normal"]

    def nats(row, label):
        before = tickets.prompt(row.ticket)
        said = [*before, {"role": "assistant", "content": label}]
        full = tokenizer.apply_chat_template(said)["input_ids"]
        stop = len(full) - 1 - full[::-1].index(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        begin = tokenizer.apply_chat_template(before, add_generation_prompt=True)
        begin = len(begin["input_ids"])
        assert tokenizer.decode(full[begin:stop]) == label
        ids = torch.tensor([full[:stop]])
        target = ids.clone()
        target[:, :begin] = -100
        with torch.inference_mode():
            return model(ids, labels=target).loss.item() * (len(ids[0]) - begin)

    expected = [min(labels, key=lambda label: nats(row, label)) for row in rows]
    prompts = [tickets.prompt(row.ticket) for row in rows]
    assert scoring.most_likely_labels(model, tokenizer, prompts, labels, batch=2) == expected
    assert len(set(expected)) > 1  # else a function that always says the same would pass


def test_label_scores_count_what_they_say(rows):
    texts = [rows[0].label, f"{rows[1].category}, nonsense", "nonsense", "", rows[4].label + " x"]
    scores = scoring.label_scores(rows, texts)
    assert scores["category_accuracy"].value == 3 / 5
    assert scores["exact_match"].value == 1 / 5


@pytest.fixture
def book():
    def fact(says, never):
        return facts.read_fact({"fact": "Within 45 days.", "says": [says], "never": [never]}, {})

    return {"days": fact("45 days", "14 days"), "label": fact("returns", "orders")}


def test_score_puts_everything_together(monkeypatch, rows, book):
    asked = []
    replies = ["45 days", "45 days. Under Orders, or a colleague will look into it."]
    filings = [f"{row.label}\ndays" for row in rows]

    def answer(model, tokenizer, prompts, limit):
        asked.append((limit, prompts))
        texts = filings if limit == scoring.FILING_TOKENS else replies
        return [scoring.Answer(text, stopped=i < 4) for i, text in enumerate(texts)]

    monkeypatch.setattr(metrics, "generate_answers", answer)
    monkeypatch.setattr(metrics, "answer_nll", lambda *_: [(2.0, 1), (0.0, 1)])
    held_out = [dataclasses.replace(row, facts=()) for row in rows]
    held_out[1] = dataclasses.replace(rows[1], facts=("days",))
    held_out[3] = dataclasses.replace(rows[3], facts=("days", "label"))
    wanted = [held_out[1], held_out[3]]
    scores, given, judged = scoring.score(None, None, held_out, book)
    assert [a.text for a in given] == filings
    assert asked == [
        (scoring.FILING_TOKENS, [tickets.prompt(row.ticket) for row in rows]),
        (
            scoring.REPLY_TOKENS,
            [tickets.reply_prompt(row.ticket, f"{row.label}\ndays") for row in wanted],
        ),
    ]
    assert scores["exact_match"].value == 1
    assert scores["stops_by_itself"].value == 4 / 5
    assert scores["facts_named"].value == 2 / 3
    assert scores["facts_right"].value == 2 / 3
    assert scores["facts_false"].value == 1 / 2
    assert scores["facts_evasive"].value == 0
    assert scores["perplexity"].value == pytest.approx(math.e)
    assert [(reply.ticket, reply.text) for reply in judged] == list(
        zip(wanted, replies, strict=True)
    )
    assert judged[1].judgement.false == (("orders", "Within 45 days."),)


def filed(rows, text="app, low"):
    return [scoring.Answer(text, True) for _ in rows]


def test_what_is_left_to_a_colleague_is_counted_apart(monkeypatch, rows, book):
    asked = [dataclasses.replace(rows[0], facts=("days", "label"))] * 3
    texts = ["A colleague will look into it.", "Under Returns.", "14 days"]
    monkeypatch.setattr(metrics, "generate_answers", lambda *_: map(scoring.Answer, texts, texts))
    replies = scoring.judge_replies(None, None, asked, filed(asked), book)
    scores = scoring.fact_scores(replies)
    assert {name: score.value for name, score in scores.items()} == {
        "facts_named": 0,
        "facts_right": 1 / 6,
        "facts_false": 1 / 3,
        "facts_evasive": 1 / 3,
    }


def test_without_facts_no_reply_is_asked_for(rows, book):
    bare = [dataclasses.replace(row, facts=()) for row in rows]
    assert scoring.judge_replies(None, None, bare, filed(bare), book) == []
    with_facts = [dataclasses.replace(rows[0], facts=("days",))]
    assert scoring.judge_replies(None, None, with_facts, filed(with_facts), None) == []
    assert scoring.fact_scores([]) == {}


def test_a_trained_model_projects_the_last_position_alone_and_as_one_product(tmp_path):
    trainer = tiny_run.make_trainer(tmp_path)
    model, tokenizer = trainer.model, trainer.processing_class
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    seen = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    prompts = [[{"role": "user", "content": text}] for text in ("a kettle is cold", "my tea")]
    scoring.generate_answers(model, tokenizer, prompts, max_new_tokens=2)
    assert {rows.shape[1] for rows in seen} == {1}
    said = [[*prompt, {"role": "assistant", "content": "a kettle"}] for prompt in prompts]
    scoring.answer_nll(model, tokenizer, [{"messages": turns} for turns in said])
    assert all(rows.is_contiguous() for rows in seen)
    before = len(seen)
    with torch.no_grad():
        model(torch.ones(2, 3, dtype=torch.long), logits_to_keep=2)
    assert not seen[before].is_contiguous(), "PyTorch or transformers does it: the hook can go"
