"""The kit's recipe against the libraries' defaults, and against LoRA on an unquantised base.

Three trainings of the same adapter on the same tickets, with the same number of optimizer steps:

* "defaults": a widely copied tutorial's arguments, and all else as TRL, Transformers and PEFT have
  it by default;
* "kit": the recipe of notebook 06;
* "lora": that recipe on the base as it is: in 16 bits, or in float32 where a machine is slow in
  those.

They run one after the other and take turns, each in a process of its own: a peak of memory is then
its own. Two things are the same in all three by choice. The adapter is float32, for in TRL's
bfloat16 a CPU without bfloat16 instructions would multiply a hundred times slower, and nothing
else could be seen. And a step sees eight tickets: with the defaults two accumulated batches of
four, else two packed rows, just long enough for all tickets to fit.
"""

import json
import random
import subprocess
import sys
import tempfile
import time

import datasets
import torch
import transformers
import trl
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from qlora_kit import memory, models, scoring
from qlora_kit.data import tickets
from qlora_kit.errors import KitError
from qlora_kit.paths import DATA, ROOT
from qlora_kit.training import quirks

NAMES = {
    "defaults": "4-bit base, the libraries' defaults",
    "kit": "4-bit base, the kit's recipe",
    "lora": "unquantised {} base, the kit's recipe",
}
SEED = 0
STEADY = 0.03  # a shared machine is not quieter than that


def bench_train(rows=96, most=5):
    """Train each of NAMES on `rows` tickets (a multiple of 8), in turns, until the ratio is steady,
    `most` times at the most. Returns what `compare` does, and as "steady" whether the last round
    has left the ratio where it was. Raises KitError if a training fails.
    """
    profile, _ = models.get_weights(models.pick_profile())
    runs, ratios = {name: [] for name in NAMES}, []
    while len(ratios) < most and not steady(ratios):
        for name, done in runs.items():
            print(f"round {len(ratios) + 1}: {name}", file=sys.stderr, flush=True)
            done.append(in_a_process(name, profile.name, rows))
        result = compare({name: fastest(done) for name, done in runs.items()})
        ratios.append(result["ratio"])
    return result | {"steady": steady(ratios)}


def steady(ratios):
    """Whether the last of the ratios, one after each round, differs by less than STEADY."""
    return len(ratios) > 1 and abs(ratios[-1] / ratios[-2] - 1) < STEADY


def in_a_process(name, profile_name, rows):
    """What `train` returns, from a Python of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "qlora_kit.bench.training", name, profile_name, str(rows)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise KitError(f"Training {name} ended with status {done.returncode}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def fastest(rounds):
    """The figures of the fastest round, for other programs only slow one down; the times of all."""
    best = min(rounds, key=lambda run: run["seconds"])
    return best | {
        "tokens_per_second": best["tokens"] / best["seconds"],
        "seconds_of_all_rounds": [run["seconds"] for run in rounds],
        "product_rate": max(run["product_rate"] for run in rounds),
    }


def compare(runs):
    """The key figures of the runs, and the runs themselves.

    `ratio` is the kit's tokens a second over those of the defaults, `qlora_over_lora` over those of
    LoRA. `matmul_share` is the time that the kit's matrix products take at this machine's best
    rate, over the time that its run took.
    Raises KitError unless all three made the same steps over the same tokens.
    """
    seen = {name: (run["steps"], run["tokens"], run["learnt"]) for name, run in runs.items()}
    if len(set(seen.values())) > 1:
        raise KitError(f"The trainings differ in steps, tokens or learnt tokens: {seen}.")
    speed = {name: run["tokens_per_second"] for name, run in runs.items()}
    kit = runs["kit"]
    return {
        "ratio": speed["kit"] / speed["defaults"],
        "matmul_share": kit["operations"] / kit["product_rate"] / kit["seconds"],
        "qlora_over_lora": speed["kit"] / speed["lora"],
        "runs": runs,
    }


def train(name, profile, rows):
    """Train once, and return the figures.

    `tokens` are those of whole conversations, counted by the trainer, padding left out;
    `learnt` are those among them that the loss counts. `peak_memory_bytes` is that of the whole
    process (with a GPU: of the GPU) until the training ends. `heldout_loss` is the mean negative
    log-likelihood of an answer's token in the dev tickets, in nats.
    """
    model, tokenizer = load(name, profile)
    transformers.set_seed(SEED)  # the adapter's first values
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(name, profile, model, tokenizer, rows, folder)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    peak = memory.peak_bytes()
    counts = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    labels = [label for row in trainer.train_dataset["labels"] for label in row]
    tokens, learnt = int(counts[-1]), sum(label != -100 for label in labels)
    dev = tickets.load(DATA / "tickets_dev.jsonl")[:60]
    examples = [ticket.example(with_reply=True) for ticket in dev]
    nats = scoring.answer_nll(model, tokenizer, examples)
    dtypes = models.pick_dtypes()
    dtype = dtypes.model if name == "lora" else dtypes.compute
    dtype_name = str(dtype).removeprefix("torch.")
    steps = trainer.state.global_step
    return {
        "name": NAMES[name].format(dtype_name),
        "products_in": dtype_name,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "tokens": tokens,
        "learnt": learnt,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "heldout_loss": sum(value for value, _ in nats) / sum(count for _, count in nats),
        "operations": operations(trainer.model, tokens, learnt),
        "product_rate": product_rate(trainer.model, tokens // (2 * steps), dtype),
    }


def load(name, profile):
    """The base in 4 bit, or for LoRA as it is, and its tokenizer."""
    if name != "lora":
        return models.load_4bit(profile)
    _, folder = models.get_weights(profile)
    dtypes = models.pick_dtypes()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtypes.model, device_map=dtypes.device
    )
    models.prepare(model, tokenizer, profile)
    return model, tokenizer


def make_trainer(name, profile, model, tokenizer, rows, folder):
    """A trainer of one epoch over `rows` examples, by the recipe of that name."""
    recipe = profile.recipe
    train = tickets.load(
        DATA / "tickets_train.jsonl", tokenizer=tokenizer, max_length=recipe.max_length
    )
    chosen = random.Random(SEED).sample(train, rows)
    examples = tickets.examples(chosen, recipe.promise_every)
    if name == "defaults":
        arguments, dropout = library_arguments(), 0.05
    else:
        arguments, dropout = kit_arguments(recipe), recipe.dropout
        arguments["max_length"] = row_length(examples, tokenizer, rows // 4)
        quirks.project_labelled_tokens_only()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=folder,
            num_train_epochs=1,
            use_cpu=models.pick_dtypes().device == "cpu",
            assistant_only_loss=True,
            logging_steps=rows // 8,  # once, after the last step
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=SEED,
            **arguments,
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=dropout,
            target_modules="all-linear",
            exclude_modules=profile.exclude,
            task_type="CAUSAL_LM",
        ),
    )
    quirks.adapters_to_float32(trainer.model)
    if name != "defaults":
        quirks.scale_loss(trainer, models.pick_dtypes().loss_scale)
    return trainer


def library_arguments():
    """The arguments of a widely copied tutorial on Llama 2, under their present names.

    Activation checkpointing is on by TRL's default. So is bfloat16 autocast, which is kept on where
    the machine is fast in it; elsewhere it would rule out a comparison.
    """
    return {
        "optim": "paged_adamw_8bit",
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "max_grad_norm": 0.3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "group_by_length",
        "packing": False,
        "bf16": models.pick_dtypes().compute is torch.bfloat16,
    }


def kit_arguments(recipe):
    """Notebook 06's arguments, but two rows make a step; their length is `row_length`."""
    return {
        "packing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.scheduler,
        "warmup_steps": recipe.warmup,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": recipe.optimizer,
        "bf16": False,
        "fp16": False,
        **quirks.checkpointing(recipe.checkpointing),
    }


def row_length(examples, tokenizer, rows):
    """The fewest tokens in a packed row with which the examples fill at most `rows` rows."""
    ids = [tokenizer.apply_chat_template(one["messages"])["input_ids"] for one in examples]
    dataset = datasets.Dataset.from_dict({"input_ids": ids})
    length = max(max(map(len, ids)), -(-sum(map(len, ids)) // rows))
    while len(trl.pack_dataset(dataset, length)) > rows:
        length += 1
    return length


def operations(model, tokens, learnt):
    """How many multiplications and additions the matrix products of a training need.

    A parameter of a matrix product costs a token four: two forward, and two backward for the
    gradient of the product's input. The output head works on the learnt tokens alone. Not counted
    are the products of activations in attention, the gradients of the adapter's own parameters,
    and whatever is computed twice.
    """
    head = model.get_output_embeddings()
    layers = sum(a.in_features * a.out_features for a in linears(model) if a is not head)
    return 4 * (layers * tokens + head.in_features * head.out_features * learnt)


def product_rate(model, tokens, dtype, repetitions=10):
    """The best rate of a product [tokens, in] x [in, out], in operations a second.

    Over the shapes of the model's own linear layers, with the threads that the training had.
    """
    best = 0.0
    for size_in, size_out in {(layer.in_features, layer.out_features) for layer in linears(model)}:
        x = torch.randn(tokens, size_in, dtype=dtype, device=model.device)
        weight = torch.randn(size_out, size_in, dtype=dtype, device=model.device)
        for _ in range(repetitions):
            start = time.perf_counter()
            y = torch.nn.functional.linear(x, weight)
            y[0, 0].item()  # a GPU works on after the call; a value waits for it
            rate = 2 * tokens * size_in * size_out / (time.perf_counter() - start)
            best = max(best, rate)
    return best


def linears(model):
    """The layers that multiply by a matrix: the base's, the adapter's and the output head."""
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)]


if __name__ == "__main__":
    run, profile_name, rows = sys.argv[1:]
    print(json.dumps(train(run, models.get_profile(profile_name), int(rows))))
