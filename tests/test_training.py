"""The quirks of the trainer, each shown to be needed."""

import pytest
import tiny_run
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
)
from trl import SFTConfig, SFTTrainer

from qlora_kit import models
from qlora_kit.data import tickets
from qlora_kit.memory.meter import static_bytes
from qlora_kit.paths import DATA
from qlora_kit.training import monitor, quirks


@pytest.fixture
def examples():
    return tickets.examples(tickets.load(DATA / "tickets_dev.jsonl")[:8], 5)


@pytest.fixture
def make_trainer(smollm2, examples, tmp_path):
    """A trainer on a one-layer model (4-bit or not) with the real tokenizer."""
    _, tokenizer = smollm2

    def make(quantised, **arguments):
        model = tiny_run.tiny_llama(tokenizer)
        if quantised:
            model.save_pretrained(tmp_path / "base")
            nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
            model = AutoModelForCausalLM.from_pretrained(
                tmp_path / "base", dtype=torch.float32, quantization_config=nf4
            )
            models.guard_cpu_repacking(model)
        settings = {"max_steps": 2, "per_device_train_batch_size": 4} | arguments
        config = SFTConfig(
            output_dir=str(tmp_path / "out"),
            bf16=False,
            use_cpu=True,
            assistant_only_loss=True,
            report_to="none",
            save_strategy="no",
            **quirks.checkpointing(False),
            **settings,
        )
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        return SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
            peft_config=lora,
        )

    return make


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_adapters_to_float32_undoes_a_cast_that_the_library_makes(make_trainer):
    model = make_trainer(quantised=True).model
    assert {p.dtype for p in trained(model).values()} == {torch.bfloat16}, (
        "TRL casts no more: adapters_to_float32 can go"
    )
    quirks.adapters_to_float32(model)
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    packed = [p for p in model.parameters() if not p.is_floating_point()]
    assert packed, "the base must stay packed"


def log_of(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_scaled_loss_trains_the_same_adapter_and_logs_the_same(make_trainer, accumulation):
    """Equal to the last bit, clipping and accumulation and all: 1,024 is a power of two."""
    seen = []
    for scale in (1, 1024):
        trainer = make_trainer(
            quantised=True,
            max_steps=4,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-2,
            max_grad_norm=0.05,
            logging_steps=1,
        )
        quirks.adapters_to_float32(trainer.model)
        quirks.scale_loss(trainer, scale)
        trainer.train()
        norms = log_of(trainer, "grad_norm")
        assert max(norms) > 0.05, "nothing was clipped"
        # What a checkpoint would hold: the adapter and Adam's moments.
        states = [value for state in trainer.optimizer.state.values() for value in state.values()]
        seen.append((log_of(trainer, "loss"), norms, [*trained(trainer.model).values(), *states]))
        evaluated = trainer.evaluate(trainer.train_dataset)["eval_loss"]
        assert evaluated < seen[0][0][0], "the loss of an evaluation is not scaled either"
    (losses, norms, tensors), (scaled_losses, scaled_norms, scaled_tensors) = seen
    assert scaled_losses == losses and len(losses) == 4
    assert scaled_norms == norms
    assert len(tensors) == 4 * 14  # of 14 matrices: the values, two moments, a count of steps
    assert all(map(torch.equal, scaled_tensors, tensors))


@pytest.fixture
def overflowing_gemma(smollm2, tmp_path):
    """The folder of a tiny Gemma whose residual stream passes 65,504, as the real one's does."""
    _, tokenizer = smollm2
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            initializer_range=0.2,
        )
    )
    for layer in model.model.layers:  # these norms write to the stream, 1 + weight times as much
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
            torch.nn.init.constant_(norm.weight, 30_000)
    model.save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


def load_nf4(folder, stream, compute):
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=stream, quantization_config=nf4)
    models.guard_cpu_repacking(model)
    return model


@pytest.fixture
def t4(monkeypatch):
    """The dtypes that a T4 would get."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    dtypes = models.pick_dtypes()
    monkeypatch.undo()
    return dtypes


def gemma_trainer(model, tokenizer, examples, folder, **arguments):
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            bf16=False,
            fp16=False,
            use_cpu=True,
            assistant_only_loss=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            **quirks.checkpointing(True),
            **arguments,
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def test_the_recipe_of_a_t4_trains_where_a_float16_stream_overflows(
    t4, overflowing_gemma, smollm2, examples, tmp_path
):
    """On a CPU, which multiplies in the same formats."""
    _, tokenizer = smollm2
    ids = torch.arange(100, 140)[None]
    largest = []
    model = load_nf4(overflowing_gemma, t4.model, t4.compute)
    for layer in model.model.layers:
        layer.register_forward_hook(lambda m, i, out: largest.append(out[0].abs().max().item()))
    assert model(ids, labels=ids).loss.isfinite()
    assert max(largest) > 65_504
    assert load_nf4(overflowing_gemma, torch.float16, torch.float16)(ids, labels=ids).loss.isnan()

    settings = {"max_steps": 8, "learning_rate": 2e-2}
    trainer = gemma_trainer(model, tokenizer, examples, tmp_path / "out", **settings)
    quirks.adapters_to_float32(trainer.model)
    quirks.scale_loss(trainer, t4.loss_scale)
    trainer.train()
    losses = log_of(trainer, "loss")
    assert len(losses) == 8 and all(loss == loss for loss in losses)
    assert losses[-1] < losses[0] - 1, losses
    assert trainer.accelerator.mixed_precision == "no"


def test_small_gradients_survive_float16_products_with_the_scale_and_not_without(
    t4, overflowing_gemma, smollm2, examples, tmp_path
):
    """The gradient of one batch among so many that a step has a million learnt tokens."""
    _, tokenizer = smollm2

    def gradient(compute, scale):
        torch.manual_seed(0)
        model = load_nf4(overflowing_gemma, t4.model, compute)
        trainer = gemma_trainer(model, tokenizer, examples, tmp_path / "out")
        quirks.adapters_to_float32(trainer.model)
        quirks.scale_loss(trainer, scale)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=1_000_000).backward()
        return torch.cat([p.grad.flatten() for p in trained(trainer.model).values()])

    exact = gradient(torch.float32, 1)
    plain, scaled = gradient(t4.compute, 1), gradient(t4.compute, t4.loss_scale)
    assert torch.cosine_similarity(plain, exact, dim=0) < 0.9
    assert torch.cosine_similarity(scaled, exact, dim=0) > 0.999
    assert scaled.norm().item() == pytest.approx(exact.norm().item(), rel=0.01)


def test_scoring_learnt_positions_only_changes_neither_loss_nor_gradients(
    make_trainer, monkeypatch
):
    import trl.trainer.utils

    def loss_and_gradients():
        trainer = make_trainer(quantised=False)
        rows = [trainer.train_dataset[i] for i in range(4)]
        batch = trainer.data_collator(rows)
        widths = []
        head = trl.trainer.utils._ChunkedLogProbFunction
        real = head.apply
        with monkeypatch.context() as patch:
            patch.setattr(head, "apply", lambda h, *rest: widths.append(len(h)) or real(h, *rest))
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
        grads = {n: p.grad for n, p in trained(trainer.model).items()}
        return loss.item(), grads, widths[0], batch["labels"]

    monkeypatch.setattr(trl.trainer.utils, "_use_triton", trl.trainer.utils._use_triton)
    loss, grads, width, labels = loss_and_gradients()
    assert width > (labels != -100).sum(), "TRL leaves them out by itself now: the function can go"
    quirks.project_labelled_tokens_only()
    loss_after, grads_after, width_after, _ = loss_and_gradients()
    assert width_after == (labels[:, 1:] != -100).sum()
    assert loss_after == pytest.approx(loss, rel=1e-5)
    for name in grads:
        torch.testing.assert_close(grads_after[name], grads[name], rtol=1e-4, atol=1e-7)


def test_only_a_and_b_get_gradients_and_the_base_keeps_every_byte(make_trainer):
    trainer = make_trainer(quantised=True, learning_rate=1e-2)
    quirks.adapters_to_float32(trainer.model)
    before = models.base_digest(trainer.model)
    start = {name: p.detach().clone() for name, p in trained(trainer.model).items()}
    trainer.train()
    assert models.base_digest(trainer.model) == before
    assert start and all("lora_A" in name or "lora_B" in name for name in start)
    moved = [n for n, p in trained(trainer.model).items() if not torch.equal(p, start[n])]
    assert len(moved) == len(start)


@pytest.mark.parametrize("what", ["weight", "absmax", "norm"])
def test_the_digest_sees_a_single_changed_byte(make_trainer, what):
    model = make_trainer(quantised=True).model
    before = models.base_digest(model)
    layer = model.base_model.model.model.layers[0]
    weight = layer.mlp.up_proj.base_layer.weight
    if what == "weight":
        weight.data.view(-1)[0] ^= 1
    elif what == "absmax":
        weight.quant_state.absmax[0] += 1
    else:
        layer.input_layernorm.weight.data[0] += 1e-3
    assert models.base_digest(model) != before


def test_the_stop_token_is_learnt_and_the_prompt_is_not(make_trainer, smollm2):
    _, tokenizer = smollm2
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    dataset = make_trainer(quantised=False).train_dataset
    for row in dataset:
        learnt = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
        assert stop in learnt
        text = tokenizer.decode(learnt)
        assert text.partition(",")[0] in tickets.CATEGORIES
        assert "the ticket." not in text


def test_packed_examples_do_not_see_each_other(make_trainer):
    """One row of several examples has the loss that they have one by one, even with sdpa."""
    torch.manual_seed(0)
    trainer = make_trainer(quantised=False, packing=True, max_length=256)
    row = trainer.train_dataset[0]
    assert len(row["seq_lengths"]) > 1
    with torch.no_grad():  # attention that matters, so that a leak would be seen
        for parameter in trainer.model.parameters():
            parameter.mul_(3)
        packed = trainer.compute_loss(trainer.model, trainer.data_collator([row])).item()
        total = count = start = 0
        for length in row["seq_lengths"]:
            part = slice(start, start + length)
            ids, labels = (torch.tensor([row[key][part]]) for key in ("input_ids", "labels"))
            learnt = (labels[:, 1:] != -100).sum().item()
            total += trainer.model(ids, labels=labels).loss.item() * learnt
            count += learnt
            start += length
    assert packed == pytest.approx(total / count, rel=1e-5)


def test_checkpointing_is_switched_by_the_name_that_the_library_knows(make_trainer):
    settings = make_trainer(quantised=False).args
    assert not settings.gradient_checkpointing
    on = SFTConfig(output_dir="x", bf16=False, use_cpu=True, **quirks.checkpointing(True))
    assert on.gradient_checkpointing


def test_the_bar_shows_the_loss_and_replaces_the_others(make_trainer, capfd):
    trainer = make_trainer(quantised=False, logging_steps=1)
    monitor.text_progress(trainer)
    trainer.train()
    shown = capfd.readouterr()
    assert "Training: 100%" in shown.err
    assert "loss=" in shown.err
    assert "{'loss'" not in shown.out


def test_one_step_is_metered_with_the_states_of_the_optimizer(make_trainer):
    trainer = make_trainer(quantised=True, max_steps=3)
    peaks = monitor.meter_one_step(trainer)
    assert peaks == {}
    trainer.train()
    assert [*peaks] == ["load", "forward", "loss", "backward", "step"]
    held = sum(static_bytes(trainer.model).values())
    states = 2 * sum(p.nbytes for p in trained(trainer.model).values())
    assert 0.9 * states < peaks["load"] - held < 2 * states
