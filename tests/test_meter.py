"""The meter on a real step, against the X-ray and the formulas."""

import gc
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_memory import T4
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from qlora_kit import memory, models
from qlora_kit.memory import architectures, xray
from qlora_kit.memory.meter import Meter, static_bytes

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


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8)])
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.layers[0](x))
