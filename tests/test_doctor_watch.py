"""The watch over the first steps: each mistake really made in a training, which then stops."""

import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_doctor import LORA, WORDS, load, make_tokenizer, shape
from transformers import LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from qlora_kit import doctor
from qlora_kit.doctor.watch import _Watch, checksum
from qlora_kit.errors import KitError
from qlora_kit.training import quirks

ROWS = [{"text": "<bos> user hot tea <end> assistant cold <end>"}] * 16


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(shape(vocab_size=len(WORDS))).save_pretrained(folder)
    return folder


@pytest.fixture
def make(base, tmp_path):
    """A trainer with an adapter on a 4-bit base, as notebook 06 has it."""

    def trainer(model=None, lora=None, optimizers=(None, None), **settings):
        settings = {"max_steps": 5, "per_device_train_batch_size": 2} | settings
        made = SFTTrainer(
            model=model or load(base),
            args=SFTConfig(
                output_dir=str(tmp_path),
                bf16=False,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                **quirks.checkpointing(False),
                **{"learning_rate": 1e-3, "save_strategy": "no"} | settings,
            ),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=make_tokenizer(),
            peft_config=None if model else LoraConfig(**LORA | (lora or {})),
            optimizers=optimizers,
        )
        quirks.adapters_to_float32(made.model)
        return made

    return trainer


def stopped(trainer, *words):
    with pytest.raises(KitError) as caught:
        trainer.train()
    said = " ".join(str(caught.value).split())
    assert said.startswith("ERROR") and " Do: " in said
    for word in words:
        assert word in said
    return said


LINE = (
    r"Watched (\d+) steps: the loss is a number, all 7 B matrices get gradients and move, and the "
    "base stays as it was.\n"
)


def seen(capsys):
    """How many steps were watched: the watch prints one line."""
    [steps] = re.findall(LINE, capsys.readouterr().out)
    return int(steps)


@pytest.mark.parametrize(
    "settings, steps",
    [
        ({}, 3),
        ({"gradient_accumulation_steps": 2}, 3),
        ({"warmup_steps": 2}, 4),  # the first step's rate is zero
        ({"max_steps": 1}, 1),
        ({"lora": {"bias": "all", "modules_to_save": ["norm"]}}, 3),
    ],
    ids=str,
)
def test_a_healthy_training_is_watched_for_a_few_steps(make, capsys, settings, steps):
    trainer = make(**settings)
    doctor.watch(trainer)
    trainer.train()
    assert seen(capsys) == steps


def test_watching_changes_no_number(make):
    def result(watched):
        torch.manual_seed(1)
        trainer = make()
        if watched:
            doctor.watch(trainer)
        trainer.train()
        return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}

    plain, watched = result(False), result(True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_a_resumed_run_is_watched_and_so_is_a_second_one(make, capsys, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    trainer = make(max_steps=4, **settings)
    doctor.watch(trainer)
    trainer.train()
    assert seen(capsys) == 3
    trainer = make(max_steps=8, **settings)
    doctor.watch(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert trainer.state.global_step == 8 and seen(capsys) == 3
    trainer.train()
    assert seen(capsys) == 3


def test_a_loss_that_is_no_number_stops_it_at_the_first_step(make):
    trainer = make()
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[WORDS.index("tea")] = float("nan")
    doctor.watch(trainer)
    stopped(trainer, "the loss is nan")
    assert trainer.state.global_step == 0


def test_a_broken_gradient_stops_it_before_the_step(make):
    trainer = make()
    b = next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)
    b.register_hook(lambda gradient: gradient * float("inf"))
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    doctor.watch(trainer)
    stopped(trainer, "B matrices got a gradient with infinities or no numbers")
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(p, after[name]) for name, p in before.items())


def test_a_frozen_b_stops_it_and_its_fix_lets_it_train(make, capsys):
    trainer = make()
    name = next(n for n, _ in trainer.model.named_parameters() if "up_proj.lora_B" in n)
    trainer.model.get_parameter(name).requires_grad_(False)
    doctor.watch(trainer)
    said = stopped(trainer, "1 of 7 B matrices got no gradient", "is frozen")
    cured = make()
    cured.model.get_parameter(name).requires_grad_(False)
    eval(said.partition(" Do: ")[2].partition(" ERROR")[0], {"model": cured.model})
    doctor.watch(cured)
    cured.train()
    assert seen(capsys) == 3


def test_an_optimizer_that_holds_other_parameters_stops_it(make, base, capsys):
    """As when it is made before the adapter is put on anew."""
    model = get_peft_model(load(base), LoraConfig(**LORA))
    other = get_peft_model(load(base), LoraConfig(**LORA))
    optimizer = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    trainer = make(model, optimizers=(optimizer, scheduler))
    doctor.watch(trainer)
    stopped(trainer, "7 of 7 B matrices did not move in 3 steps", "holds other parameters")
    cured = make(get_peft_model(load(base), LoraConfig(**LORA)))
    doctor.watch(cured)
    cured.train()
    assert seen(capsys) == 3


def test_a_rate_of_zero_stops_it_and_the_fix_moves_it(make, capsys):
    trainer = make(learning_rate=0.0)
    doctor.watch(trainer)
    said = stopped(trainer, "7 of 7 B matrices did not move in 5 steps", "rate was 0")
    assert "SFTConfig(learning_rate=2e-4)" in said
    cured = make(learning_rate=2e-4)
    doctor.watch(cured)
    cured.train()
    assert seen(capsys) == 3


def test_a_base_that_changes_stops_it(make):
    trainer = make()
    norm = trainer.model.get_submodule("base_model.model.model.norm")
    doctor.watch(trainer)
    step = trainer.training_step

    def meddling(*args, **kwargs):
        norm.weight.data[0] += 1e-6
        return step(*args, **kwargs)

    trainer.training_step = meddling
    stopped(trainer, "1 frozen parameters have changed, such as base_model.model.model.norm")


def test_a_model_without_an_adapter_stops_at_once(make):
    trainer = make(LlamaForCausalLM(shape(vocab_size=len(WORDS))))
    doctor.watch(trainer)
    stopped(trainer, "no adapter on the model")


@pytest.mark.parametrize("budget, fits", [(None, True), (2000, True), (999, False)])
def test_memory_is_held_against_a_budget_with_the_gpu_faked(make, monkeypatch, budget, fits):
    trainer = make()
    watched = _Watch(trainer, budget)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1000)
    assert ([*watched.memory()] == []) is fits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_checksum_sees_any_change_and_reads_only(dtype):
    tensor = torch.arange(1, 36).to(dtype)[1:].view(2, 17)
    before, first = tensor.clone(), checksum(tensor)
    assert torch.equal(tensor, before) and checksum(tensor) == first
    for place in (0, 33):
        changed = tensor.clone()
        changed.view(-1)[place] += 1
        assert checksum(changed) != first
    assert checksum(tensor.flip(1)) != first or dtype != torch.uint8
