"""How likely a model finds what it might have said, against a direct computation, on a tiny Llama
with random weights.
"""

import math

import pytest
import torch
from tiny_run import make_tokenizer, tiny_llama

from qlora_kit.data import tickets
from qlora_kit.paths import DATA
from qlora_kit.scoring import generation


@pytest.fixture(scope="module")
def tiny():
    rows = tickets.load(DATA / "tickets_dev.jsonl")[:20]
    tokenizer = make_tokenizer(rows)
    # such a range gives the model opinions
    model = tiny_llama(tokenizer, hidden_size=32, layers=2, initializer_range=0.5).eval()
    return model, tokenizer, [tickets.prompt(row.ticket) for row in rows]


def nats(model, tokenizer, prompt, text):
    """The negative logarithm of the probability of a text, one row, nothing padded or kept."""
    begin = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        chances = model(torch.tensor([begin + tokens])).logits[0].log_softmax(1)
    return -sum(chances[len(begin) + i - 1, token].item() for i, token in enumerate(tokens))


# Each word of the tickets is a token: categories of one, of several with a beginning in common, and
# of both kinds.
@pytest.mark.parametrize(
    "categories",
    [["the", "kettle", "and"], ["the kettle", "the app is", "a phone and the app"], ["the", "a a"]],
    ids=["one token", "several", "both"],
)
def test_the_probability_of_a_category_is_that_of_its_tokens_one_after_the_other(tiny, categories):
    model, tokenizer, prompts = tiny
    assert len({len(tokenizer.apply_chat_template(p)["input_ids"]) for p in prompts[:5]}) > 1
    spread = generation.category_probabilities(model, tokenizer, prompts[:5], categories, batch=2)
    assert len(spread) == 5
    for prompt, given in zip(prompts, spread, strict=False):
        direct = [math.exp(-nats(model, tokenizer, prompt, text)) for text in categories]
        assert list(given) == categories and sum(given.values()) == pytest.approx(1)
        for value, one in zip(given.values(), direct, strict=True):
            assert value == pytest.approx(one / sum(direct), rel=1e-3)


def test_the_most_likely_label_has_the_highest_of_these_probabilities(tiny):
    model, tokenizer, prompts = tiny
    labels = ["the kettle", "a phone", "my money", "the app"]
    spread = generation.category_probabilities(model, tokenizer, prompts, labels)
    best = generation.most_likely_labels(model, tokenizer, prompts, labels, batch=3)
    assert best == [max(chances, key=chances.get) for chances in spread]
    assert len(set(best)) > 1
