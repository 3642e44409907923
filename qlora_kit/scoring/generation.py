"""What a model says, and how likely it finds what it might have said: in batches."""

import contextlib
import copy
import itertools
from dataclasses import dataclass

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Answer:
    """The text of an answer, and whether it ended by a stop token and not by the limit."""

    text: str
    stopped: bool


def generate_answers(model, tokenizer, prompts, max_new_tokens, batch=50):
    """Greedy answers to a list of chat prompts, as a list of Answer in the same order.

    What all prompts begin with is read once, and its keys and values are kept. The rest is padded
    on its left, so that every answer starts in the same column, and sorted by length, so that
    little is padded. On 4-bit weights a batch pays the dequantisation once.
    """
    rows = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        for prompt in prompts
    ]
    columns = zip(*(row[:-1] for row in rows), strict=False) if len(rows) > batch else ()
    shared = len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))
    answers = [None] * len(rows)
    stops = stop_tokens(model)
    with inference(model):
        begin = torch.tensor([rows[0][:shared]], dtype=torch.long, device=model.device)
        kept = model(begin, use_cache=True, logits_to_keep=1).past_key_values if shared else None
        for chosen in batches(rows, batch, "Generating"):
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


def stop_tokens(model):
    """The ids of the tokens at which generation ends, as a set; a config may hold one or none."""
    ids = model.generation_config.eos_token_id
    return {ids} - {None} if ids is None or isinstance(ids, int) else set(ids)


@contextlib.contextmanager
def inference(model):
    """The model without dropout and without gradients; afterwards it is in the mode that it was.

    Its head gets rows that lie side by side. PyTorch 2.13 multiplies a slice of a batch by a frozen
    weight one row at a time, and in bfloat16 copies the weight for each: 17 GB for Gemma's head
    and 50 rows.
    """
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


def answer_nll(model, tokenizer, examples, batch=8):
    """The negative log-likelihood of what the assistant says in each conversation of `examples`
    (dictionaries with "messages"): a list of (nats, tokens).

    Nats are summed over the assistant's tokens, its stop tokens included; the chat template marks
    them. Logits are made for the end of each row only, from the first answer on: for Gemma a full
    set would take 1 MiB a token.
    """
    rows, targets = [], []
    for example in examples:
        written = tokenizer.apply_chat_template(
            example["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        ids, said = written["input_ids"], written["assistant_masks"]
        rows.append(ids)
        pairs = zip(ids, said, strict=True)
        targets.append([token if learnt else -100 for token, learnt in pairs][said.index(1) :])
    result = [None] * len(rows)
    with inference(model):
        for chosen in batches(rows, batch, "Reading"):
            inputs = tokenizer.pad(
                {"input_ids": [rows[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            longest = max(len(targets[i]) for i in chosen)
            logits = model(**inputs, logits_to_keep=longest + 1).logits
            for row, i in enumerate(chosen):
                target = torch.tensor(targets[i], device=logits.device)
                guess = logits[row, -len(target) - 1 : -1].float()
                nats = torch.nn.functional.cross_entropy(guess, target, reduction="sum").item()
                result[i] = nats, (target != -100).sum().item()
    return result


def most_likely_labels(model, tokenizer, prompts, labels, batch=4):
    """For each prompt, the one of the labels to which the model gives the highest probability.

    This is the best that can be read out of a model that was never told the form of the answer.
    """
    chances = log_probabilities(model, tokenizer, prompts, labels, batch)
    return [labels[best] for best in chances.argmax(1).tolist()]


def category_probabilities(model, tokenizer, prompts, categories, batch=4):
    """How the model spreads its belief over the categories: a dict for each prompt, in order.

    Each maps a category to the probability that the answer begins with its text, divided by the sum
    over all categories, so that it says how sure the model is if it has to choose one of them.
    """
    chances = log_probabilities(model, tokenizer, prompts, categories, batch).softmax(1)
    return [dict(zip(categories, row, strict=True)) for row in chances.tolist()]


def log_probabilities(model, tokenizer, prompts, labels, batch=4):
    """The logarithm of the probability that an answer begins with a label: (prompts, labels).

    The tensor is in float32 and lies on the CPU. Each prompt is read once; its keys and values are
    kept, and what labels begin with is tried after them: "app, low" and "app, urgent" differ in
    their last token alone. No label may begin with another one, since it is not asked whether the
    model would stop there.
    """
    begins = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        for prompt in prompts
    ]
    endings = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    stems = [list(stem) for stem in sorted({tuple(tokens[:-1]) for tokens in endings} - {()})]
    result = torch.empty(len(prompts), len(labels))
    with inference(model):
        for chosen in batches(begins, batch, "Comparing"):
            read = tokenizer.pad(
                {"input_ids": [begins[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            output = model(**read, use_cache=True, logits_to_keep=1)
            first = output.logits[:, 0].float().log_softmax(1)
            sums = first[:, [tokens[0] for tokens in endings]]
            if stems:
                sums += later_tokens(model, tokenizer, read, output, stems, endings)
            result[chosen] = sums.cpu()
    return result


def later_tokens(model, tokenizer, read, output, stems, endings):
    """What the tokens of each ending but its first add to its logarithm: (prompts, endings)."""
    rest = tokenizer.pad({"input_ids": stems}, padding_side="right", return_tensors="pt")
    rest, count = rest.to(model.device), len(read["input_ids"])
    cache = output.past_key_values
    cache.batch_repeat_interleave(len(stems))
    mask = read["attention_mask"].repeat_interleave(len(stems), 0)
    mask = torch.cat([mask, rest["attention_mask"].repeat(count, 1)], dim=1)
    logits = model(
        input_ids=rest["input_ids"].repeat(count, 1), attention_mask=mask, past_key_values=cache
    ).logits
    logits = logits.view(count, len(stems), *logits.shape[1:])
    # one prompt at a time: Gemma's logits take 1 MiB a token, and a copy is as large
    norms = torch.stack([row.float().logsumexp(2) for row in logits])
    sums = torch.zeros(count, len(endings), device=model.device)
    for column, (begin, *others) in enumerate(endings):
        if others:
            stem, places = stems.index([begin, *others][:-1]), list(range(len(others)))
            chances = logits[:, stem, places, others].float() - norms[:, stem, places]
            sums[:, column] = chances.sum(1)
    return sums
