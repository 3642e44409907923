"""The QLoRA layer: the numbers of bitsandbytes and PEFT, and what it keeps in memory."""

import weakref

import bitsandbytes
import pytest
import torch
from test_lora import assert_same, peft_layer, random, run, started
from torch import nn

from qlora_kit import nf4
from qlora_kit.lora import LoRALinear
from qlora_kit.qlora import Matmul4bit, QLoRALinear


def library_layer(linear, layer, double_quant, **options):
    """bitsandbytes' Linear4bit of the same weight under PEFT's LoRA with the same A and B."""
    out_features, in_features = linear.weight.shape
    base = bitsandbytes.nn.Linear4bit(
        in_features,
        out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.float32,
        compress_statistics=double_quant,
        quant_type="nf4",
    )
    base.load_state_dict(linear.state_dict())
    base = base.to("cpu")  # this quantises
    base.support_avx512bf16_for_cpu = False  # else it may repack the weight in place
    stand_in = nn.Module()  # what peft_layer reads of a layer
    stand_in.base, stand_in.rank, stand_in.A, stand_in.B = base, layer.rank, layer.A, layer.B
    return peft_layer(stand_in, **options)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_forward_and_gradients_are_those_of_bitsandbytes_and_peft(bias, dropout, double_quant):
    linear = nn.Linear(192, 80, bias=bias)
    layer = QLoRALinear(linear, rank=8, alpha=12, dropout=dropout, double_quant=double_quant)
    started(layer)
    theirs = library_layer(linear, layer, double_quant, lora_alpha=12, lora_dropout=dropout)
    assert torch.equal(layer.base.weight.packed, theirs.base_layer.weight.data.view(-1))
    x = random(2, 5, 192)
    assert_same(run(layer, x), run(theirs, x))


def test_double_quantisation_is_the_default_as_in_qlora():
    layer = QLoRALinear(random(64, 64), rank=1, alpha=1)
    assert isinstance(layer.base.weight.scales, nf4.QuantizedScales)


def test_the_layer_is_lora_around_the_dequantised_weight():
    linear = nn.Linear(64, 48)
    layer = started(QLoRALinear(linear, rank=4, alpha=8))
    plain = nn.Linear(64, 48)
    plain.weight.data = nf4.quantize(linear.weight, double_quant=True).dequantize()
    plain.bias.data = linear.bias.detach().clone()
    twin = LoRALinear(plain, rank=4, alpha=8)
    twin.A.data, twin.B.data = layer.A.detach().clone(), layer.B.detach().clone()
    x = random(5, 64)
    assert_same(run(layer, x), run(twin, x))


def test_the_gradient_of_the_matrix_product_is_the_numerical_one():
    weight = nf4.quantize(random(3, 5))
    x = random(2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Matmul4bit.apply(x, weight), x)


def test_between_forward_and_backward_no_dequantised_weight_is_alive(monkeypatch):
    alive = []
    dequantize = nf4.QuantizedWeight.dequantize

    def watched(weight):
        values = dequantize(weight)
        alive.append(weakref.ref(values.untyped_storage()))
        return values

    monkeypatch.setattr(nf4.QuantizedWeight, "dequantize", watched)
    kept = []
    layer = QLoRALinear(nn.Linear(64, 48), rank=4, alpha=8)
    x = random(5, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = layer(x)
    assert len(alive) == 1 and alive[0]() is None
    assert (48, 64) not in kept and (64, 48) not in kept
    y.sum().backward()
    assert len(alive) == 2 and alive[1]() is None


def test_the_weight_is_kept_in_4_bits_and_nowhere_else():
    linear = nn.Linear(64, 48)
    layer = QLoRALinear(linear, rank=4, alpha=8)
    assert layer.base.weight.packed.nbytes == 64 * 48 // 2
    assert set(layer.state_dict()) == {"A", "B", "base.bias"}
    original = weakref.ref(linear.weight)
    del linear
    assert original() is None


def test_training_changes_a_and_b_and_not_a_byte_of_the_base():
    layer = QLoRALinear(nn.Linear(64, 48), rank=4, alpha=8)
    before = layer.base.weight.packed.clone(), layer.base.weight.absmax.clone()
    a, b, bias = (p.detach().clone() for p in (layer.A, layer.B, layer.base.bias))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        layer(random(5, 64)).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.base.weight.packed, before[0])
    assert torch.equal(layer.base.weight.absmax, before[1])
    assert torch.equal(layer.base.bias, bias) and layer.base.bias.grad is None
    assert not torch.equal(layer.A, a) and not torch.equal(layer.B, b)
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["A", "B"]


def test_8_x_8_at_rank_2_has_32_bytes_of_codes_and_128_of_adapter():
    layer = QLoRALinear(random(8, 8), rank=2, alpha=2, double_quant=False)
    base, adapter = layer.base.weight.packed.nbytes, layer.A.nbytes + layer.B.nbytes
    assert (base, adapter) == (32, 128)
    assert [f"{size / 1024:.4f}" for size in (base, adapter, base + adapter)] == [
        "0.0312",
        "0.1250",
        "0.1562",
    ]
    assert layer.base.weight.nbytes == 36  # what that sum leaves out: one scale


def test_16_bit_inputs_give_16_bit_outputs_and_gradients():
    layer = started(QLoRALinear(nn.Linear(64, 48), rank=4, alpha=8))
    exact = run(layer, random(5, 64))[0]
    x = random(5, 64).bfloat16().requires_grad_()
    y = layer(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert (y - exact).abs().max() < 0.02 * exact.abs().max()


def test_autocast_works_in_both_directions():
    layer = started(QLoRALinear(nn.Linear(64, 48), rank=4, alpha=8))
    exact = run(layer, random(5, 64))
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = run(layer, random(5, 64))
    for one, other in zip(exact, rough, strict=True):
        assert (one - other).abs().max() < 0.03 * one.abs().max()


def test_another_dtype_leaves_the_scales_alone_and_another_device_takes_them_along():
    layer = QLoRALinear(nn.Linear(64, 48), rank=4, alpha=8)
    absmax = layer.base.weight.absmax
    layer.to(torch.bfloat16)
    assert layer.A.dtype == layer.base.bias.dtype == torch.bfloat16
    assert torch.equal(layer.base.weight.absmax, absmax)
    assert layer(random(5, 64).bfloat16()).dtype == torch.bfloat16
    layer.to("meta")
    assert layer.base.weight.device.type == layer.base.weight.absmax.device.type == "meta"


@pytest.mark.parametrize(
    "base, message",
    [
        (torch.tensor([[1.0, float("nan")]]), "1 NaN"),
        (torch.ones(2, 2, dtype=torch.int64), "not torch.int64"),
        (torch.ones(2, 2, dtype=torch.float64), "not torch.float64"),
        (torch.ones(3), r"shape \[3\]"),
        (nn.Conv1d(2, 2, 1), "not Conv1d"),
    ],
)
def test_a_base_that_cannot_be_quantised_is_refused(base, message):
    with pytest.raises(ValueError, match=message):
        QLoRALinear(base, rank=1, alpha=1)


def test_a_bad_rank_or_input_is_refused_and_a_high_rank_warns():
    with pytest.raises(ValueError, match="rank"):
        QLoRALinear(torch.ones(2, 2), rank=0, alpha=1)
    with pytest.warns(UserWarning, match="above the full rank of a 2 x 2 matrix"):
        layer = QLoRALinear(torch.ones(2, 2), rank=3, alpha=1)
    with pytest.raises(ValueError, match=r"\[..., 2\]"):
        layer(torch.ones(3))
