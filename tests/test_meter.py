"""The meter on a real step, against the X-ray and the formulas."""

import gc
import types
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_memory import T4
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from qlora_kit import memory, models
from qlora_kit.memory import architectures, machine, xray
from qlora_kit.memory.meter import Meter, static_bytes
from qlora_kit.training.monitor import meter_one_step

TINY = LlamaConfig(
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a tiny model with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(TINY).save_pretrained(folder)
    return folder


def adapted(folder, checkpointing):
    """The model in 4 bit and float32 with adapters on all linear layers."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map="cpu",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    )
    models.guard_cpu_repacking(model)
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def step(model, optimizer, ids):
    optimizer.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()


def measure(folder, batch, seq, checkpointing):
    model = adapted(folder, checkpointing)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)
    ids = torch.ones(batch, seq, dtype=torch.long)
    step(model, optimizer, ids)  # makes the optimizer's states
    optimizer.zero_grad()
    with Meter(model, optimizer, checkpointing) as meter:
        step(model, optimizer, ids)
    return model, meter


def expected(folder, batch, seq, checkpointing):
    architecture = architectures.find(folder)
    setup = memory.Setup(
        batch=batch,
        seq=seq,
        prepare_kbit=True,
        compute_dtype="float32",
        loss="plain",
        checkpointing=checkpointing,
    )
    return xray.trace(architecture, setup, T4), memory.budget(architecture, setup, T4)


@pytest.mark.parametrize(
    "profile, batch, seq, checkpointing",
    [
        pytest.param("smollm2-135m", 1, 64, True, marks=pytest.mark.full),
        pytest.param("smollm2-135m", 2, 64, False, marks=pytest.mark.full),
        pytest.param("gemma-3-270m", 1, 64, True, marks=pytest.mark.full),
    ],
)
def test_the_three_agree_on_a_real_model(profile, batch, seq, checkpointing):
    _, folder = models.get_weights(models.PROFILES[profile])
    agree(folder, batch, seq, checkpointing)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_three_agree_on_a_tiny_model(tiny, checkpointing):
    agree(tiny, 2, 96, checkpointing)


def agree(folder, batch, seq, checkpointing):
    """Meter, X-ray and formulas say the same of a step, within 3 %."""
    model, meter = measure(folder, batch, seq, checkpointing)
    seen, said = expected(folder, batch, seq, checkpointing)
    # A CPU's allocator has no cuBLAS workspace and no gaps.
    assert meter.peak == pytest.approx(seen.peak - T4.workspace, rel=0.03)
    assert meter.peak == pytest.approx(said.peak_allocated - T4.workspace, rel=0.03)
    held = static_bytes(model)
    for name in ("quantised weights", "quantisation constants", "adapter"):
        assert held[name] == said.terms[name], name
        assert meter.at_peak[name] == seen.at_peak[name], name
    assert [*meter.peaks] == ["load", "forward", "loss", "backward", "step"]
    assert meter.peaks["load"] < meter.peaks["forward"] <= meter.peak
    assert meter.peaks["loss"] == meter.peak or meter.peaks["backward"] == meter.peak
    # torch keeps a step count beside AdamW's two states.
    assert meter.at_peak["optimizer"] == pytest.approx(said.terms["optimizer"], rel=0.05)


def test_the_meter_leaves_no_hook_behind():
    model = torch.nn.Module()
    model.inner = Decoder()
    model.get_decoder = lambda: model.inner
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with Meter(model, optimizer) as meter:
            model.inner(torch.ones(4, 8)).sum().backward()
            optimizer.step()
        assert [*meter.peaks] == ["load", "forward", "loss", "backward", "step"]
    assert not model.inner._forward_pre_hooks
    assert not model.inner.norm._forward_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_who_keeps_the_meter_does_not_keep_the_model():
    model = torch.nn.Module()
    model.inner = Decoder()
    model.get_decoder = lambda: model.inner
    optimizer = torch.optim.AdamW(model.parameters())
    with Meter(model, optimizer) as meter:
        model.inner(torch.ones(4, 8)).sum().backward()
        optimizer.step()
    weights, states = weakref.ref(model.inner), weakref.ref(optimizer)
    model = optimizer = None
    gc.collect()
    assert weights() is None and states() is None
    assert meter.peak > 0


def decoder_and_optimizer():
    model = torch.nn.Module()
    model.inner = Decoder()
    model.get_decoder = lambda: model.inner
    return model, torch.optim.AdamW(model.parameters(), foreach=False)


def modes():
    """How many modes are on torch's dispatch stack."""
    return torch._C._len_torch_dispatch_stack()


def test_nothing_is_noted_after_the_end():
    """What was made inside and is freed later is no part of the step."""
    model, optimizer = decoder_and_optimizer()
    with Meter(model, optimizer) as meter:
        kept = model.inner(torch.ones(4, 8))
    ends = len(meter.timeline)
    assert ends > 1
    del kept, model, optimizer
    gc.collect()
    assert len(meter.timeline) == ends


class Trainer:
    """What `meter_one_step` asks of a trainer: callbacks around each step of a small model."""

    def __init__(self, fails):
        self.model, self.optimizer = decoder_and_optimizer()
        self.fails, self.callbacks = fails, []

    def add_callback(self, callback):
        self.callbacks.append(callback)

    def call(self, name, step):
        state = types.SimpleNamespace(global_step=step)
        wrapped = types.SimpleNamespace(optimizer=self.optimizer)
        for callback in self.callbacks:
            getattr(callback, name)(None, state, None, model=self.model, optimizer=wrapped)

    def train(self):
        self.call("on_train_begin", 0)
        for step in range(3):
            self.call("on_step_begin", step)
            self.model.inner(torch.ones(4, 8)).sum().backward()
            if step == 1 and self.fails:
                raise self.fails
            self.optimizer.step()
            self.call("on_step_end", step + 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory")])
def test_an_interrupted_step_leaves_no_meter_behind(error):
    trainer = Trainer(error)
    peaks = meter_one_step(trainer)
    try:
        with pytest.raises(type(error)):
            trainer.train()
        assert modes() == 0
        assert not trainer.model.inner._forward_pre_hooks
        assert peaks == {}
        trainer.fails = None
        trainer.train()  # the same cell again
        assert [*peaks] == ["load", "forward", "loss", "backward", "step"]
    finally:
        while modes():  # the tests that follow need torch as it was
            torch.utils._python_dispatch._pop_mode()


def test_the_peak_of_a_gpu_is_remembered_when_a_meter_sets_its_counter_back(monkeypatch):
    counter = types.SimpleNamespace(peak=700)
    monkeypatch.setattr("qlora_kit.cuda.usable_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: counter.peak)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda: setattr(counter, "peak", 300)
    )
    monkeypatch.setattr(machine, "earlier", 0, raising=False)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    model, optimizer = decoder_and_optimizer()
    with Meter(model, optimizer) as meter:
        model.inner(torch.ones(4, 8)).sum().backward()
        counter.peak = 500
        optimizer.step()
    assert meter.peak == 500  # the step alone
    assert memory.peak_bytes() == 700  # all of the process


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.layers[0](x))
