"""The quirks of the trainer, each shown to be needed."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from qlora_kit import finetune, models, tickets
from qlora_kit.meter import static_bytes


@pytest.fixture
def examples():
    return tickets.examples(tickets.load(tickets.DATA / "tickets_dev.jsonl")[:8], reply_every=4)


@pytest.fixture
def make_trainer(smollm2, examples, tmp_path):
    """A trainer on a one-layer model (4-bit or not) with the real tokenizer."""
    _, tokenizer = smollm2

    def make(quantised, **arguments):
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(shape)
        if quantised:
            model.save_pretrained(tmp_path / "base")
            from transformers import AutoModelForCausalLM, BitsAndBytesConfig

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
            report_to="none",
            save_strategy="no",
            **finetune.checkpointing(False),
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
    finetune.adapters_to_float32(model)
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    packed = [p for p in model.parameters() if not p.is_floating_point()]
    assert packed, "the base must stay packed"


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
    finetune.score_learnt_positions_only()
    loss_after, grads_after, width_after, _ = loss_and_gradients()
    assert width_after == (labels[:, 1:] != -100).sum()
    assert loss_after == pytest.approx(loss, rel=1e-5)
    for name in grads:
        torch.testing.assert_close(grads_after[name], grads[name], rtol=1e-4, atol=1e-7)


def test_only_a_and_b_get_gradients_and_the_base_keeps_every_byte(make_trainer):
    trainer = make_trainer(quantised=True, learning_rate=1e-2)
    finetune.adapters_to_float32(trainer.model)
    before = finetune.base_digest(trainer.model)
    start = {name: p.detach().clone() for name, p in trained(trainer.model).items()}
    trainer.train()
    assert finetune.base_digest(trainer.model) == before
    assert start and all("lora_A" in name or "lora_B" in name for name in start)
    moved = [n for n, p in trained(trainer.model).items() if not torch.equal(p, start[n])]
    assert len(moved) == len(start)


@pytest.mark.parametrize("what", ["weight", "absmax", "norm"])
def test_the_digest_sees_a_single_changed_byte(make_trainer, what):
    model = make_trainer(quantised=True).model
    before = finetune.base_digest(model)
    layer = model.base_model.model.model.layers[0]
    weight = layer.mlp.up_proj.base_layer.weight
    if what == "weight":
        weight.data.view(-1)[0] ^= 1
    elif what == "absmax":
        weight.quant_state.absmax[0] += 1
    else:
        layer.input_layernorm.weight.data[0] += 1e-3
    assert finetune.base_digest(model) != before


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
    on = SFTConfig(output_dir="x", bf16=False, use_cpu=True, **finetune.checkpointing(True))
    assert on.gradient_checkpointing


def test_the_bar_shows_the_loss_and_replaces_the_others(make_trainer, capfd):
    trainer = make_trainer(quantised=False, logging_steps=1)
    finetune.text_progress(trainer)
    trainer.train()
    shown = capfd.readouterr()
    assert "Training: 100%" in shown.err
    assert "loss=" in shown.err
    assert "{'loss'" not in shown.out


def test_one_step_is_metered_with_the_states_of_the_optimizer(make_trainer):
    trainer = make_trainer(quantised=True, max_steps=3)
    peaks = finetune.meter_one_step(trainer)
    assert peaks == {}
    trainer.train()
    assert [*peaks] == ["load", "forward", "loss", "backward", "step"]
    held = sum(static_bytes(trainer.model).values())
    states = 2 * sum(p.nbytes for p in trained(trainer.model).values())
    assert 0.9 * states < peaks["load"] - held < 2 * states
