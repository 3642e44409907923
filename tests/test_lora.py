"""The LoRA layer: the formula, PEFT's numbers, and what training touches."""

import math

import pytest
import torch
from torch import nn

from qlora_kit.lora import LoRALinear


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def started(layer):
    """The layer with a B that is no longer zero, as after some training."""
    nn.init.normal_(layer.B)
    return layer


def peft_layer(layer, **options):
    """PEFT's layer around the same base with the same A and B."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=layer.rank, target_modules=["base"], **options)
    theirs = inject_adapter_in_model(config, nn.ModuleDict({"base": layer.base}))["base"]
    theirs.lora_A["default"].weight.data = layer.A.detach().clone()
    theirs.lora_B["default"].weight.data = layer.B.detach().clone()
    return theirs


def run(layer, x, seed=0):
    """Output, and the gradients that it sends to x, A and B."""
    x = x.clone().requires_grad_()
    torch.manual_seed(seed)  # for dropout
    y = layer(x)
    (y * random(*y.shape, seed=9)).sum().backward()
    return y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.requires_grad)


def assert_same(ours, theirs):
    """Output and the three gradients, within 1e-6."""
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_and_gradients_are_those_of_peft(bias, dropout):
    layer = started(LoRALinear(nn.Linear(48, 32, bias=bias), rank=4, alpha=6, dropout=dropout))
    theirs = peft_layer(layer, lora_alpha=6, lora_dropout=dropout)
    x = random(2, 5, 48)
    assert_same(run(layer, x), run(theirs, x))


def test_a_scaling_of_alpha_over_the_root_of_the_rank_is_rslora():
    layer = started(LoRALinear(nn.Linear(48, 32), rank=4, alpha=6))
    theirs = peft_layer(layer, lora_alpha=6, use_rslora=True)
    assert layer.scaling == 6 / 4
    layer.scaling = 6 / math.sqrt(4)
    assert layer.scaling == theirs.scaling["default"]
    x = random(5, 48)
    assert_same(run(layer, x), run(theirs, x))


def test_the_layer_is_a_parallel_path_around_a_weight():
    weight = random(3, 3)
    layer = started(LoRALinear(weight, rank=1, alpha=2))
    x = random(4, 3, seed=1)
    whole = weight + layer.scaling * layer.B @ layer.A
    torch.testing.assert_close(layer(x), x @ whole.T)
    assert layer.A.shape == (1, 3) and layer.B.shape == (3, 1)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 6
    assert sum(p.numel() for p in layer.parameters() if not p.requires_grad) == 9


def test_shapes_follow_the_base():
    layer = LoRALinear(random(5, 7), rank=2, alpha=2)
    assert layer.A.shape == (2, 7) and layer.B.shape == (5, 2)
    assert layer(random(7)).shape == (5,)
    assert layer(random(2, 3, 7)).shape == (2, 3, 5)
    assert layer(random(0, 7)).shape == (0, 5)


def test_at_the_start_the_layer_is_its_base_and_only_b_has_a_gradient():
    base = nn.Linear(48, 32)
    layer = LoRALinear(base, rank=4, alpha=8)
    x = random(5, 48)
    assert torch.equal(layer(x), base(x))
    _, _, a, b = run(layer, x)
    assert not a.any() and b.any()


def test_a_starts_as_peft_starts_it():
    torch.manual_seed(0)
    layer = LoRALinear(random(64, 400), rank=16, alpha=16)
    torch.manual_seed(0)
    expected = nn.init.kaiming_uniform_(torch.empty(16, 400), a=math.sqrt(5))
    assert torch.equal(layer.A, expected)
    theirs = peft_layer(LoRALinear(random(64, 400), rank=16, alpha=16))
    theirs.reset_lora_parameters("default", True)
    for a in (layer.A, theirs.lora_A["default"].weight):
        assert 0.98 / math.sqrt(400) < a.abs().max() <= 1 / math.sqrt(400)
        assert a.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.05)


def test_training_changes_a_and_b_and_nothing_else():
    layer = LoRALinear(nn.Linear(16, 8), rank=2, alpha=4)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        layer(random(4, 16)).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in layer.state_dict().items() if (value != before[name]).any()}
    assert changed == {"A", "B"}
    assert {name for name, value in layer.named_parameters() if value.grad is not None} == changed


def test_dropout_acts_in_training_only():
    layer = started(LoRALinear(random(8, 16), rank=2, alpha=4, dropout=0.5))
    x = random(4, 16)
    torch.manual_seed(0)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_the_adapter_is_float32_around_a_16_bit_base():
    layer = started(LoRALinear(nn.Linear(48, 32, dtype=torch.bfloat16), rank=4, alpha=4))
    assert layer.A.dtype == layer.B.dtype == torch.float32
    theirs = peft_layer(layer, lora_alpha=4)
    x = random(5, 48).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    assert_same(run(layer, x), run(theirs, x))


def test_a_rank_above_the_full_rank_warns_and_works():
    with pytest.warns(UserWarning, match="rank 6 is above the full rank of a 5 x 7 matrix, 5"):
        layer = started(LoRALinear(random(5, 7), rank=6, alpha=6))
    theirs = peft_layer(layer, lora_alpha=6)
    assert_same(run(layer, random(4, 7)), run(theirs, random(4, 7)))


def test_the_full_rank_itself_is_no_reason_to_warn(recwarn):
    LoRALinear(random(5, 7), rank=5, alpha=5)
    assert not recwarn


@pytest.mark.parametrize("rank", [0, -1, 1.5, "4"])
def test_a_rank_below_one_is_refused_and_the_base_left_as_it_was(rank):
    base = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=f"rank .*not {rank}"):
        LoRALinear(base, rank=rank, alpha=1)
    assert base.weight.requires_grad


@pytest.mark.parametrize(
    "base, message",
    [
        (torch.tensor([[1.0, float("nan")]]), "1 NaN and 0 infinite"),
        (torch.tensor([[1.0, float("inf")]]), "0 NaN and 1 infinite"),
        (torch.ones(2, 2, dtype=torch.int64), "not torch.int64"),
        (torch.ones(3), r"shape \[3\]"),
        (torch.ones(3, 3, 3), r"shape \[3, 3, 3\]"),
        (torch.ones(3, 0), r"empty: its shape is \[3, 0\]"),
        (nn.Conv1d(2, 2, 1), "not Conv1d"),
        ([[1.0]], "not list"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_base_that_is_no_matrix_of_finite_numbers_is_refused(base, message):
    with pytest.raises(ValueError, match=message):
        LoRALinear(base, rank=1, alpha=1)


def test_a_linear_layer_with_nan_is_refused():
    base = nn.Linear(2, 2)
    base.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 NaN"):
        LoRALinear(base, rank=1, alpha=1)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.ones(2, 5), r"\[..., 3\], not torch.float32 \[2, 5\]"),
        (torch.ones(3, 1), r"\[3, 1\]"),
        (torch.tensor(1.0), r"not torch.float32 \[\]"),
        (torch.ones(2, 3, dtype=torch.int64), "floating-point .*not torch.int64"),
    ],
)
def test_an_input_of_another_width_or_kind_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        LoRALinear(torch.ones(3, 3), rank=1, alpha=1)(x)
