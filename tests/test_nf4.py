"""NF4: every byte as bitsandbytes has it, and the numbers that the lessons state."""

import itertools

import bitsandbytes.functional as library
import pytest
import torch

from qlora_kit import nf4

BLOCK_SIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096]  # all that bitsandbytes takes


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def midpoints(levels):
    return (levels[:-1] + levels[1:]) / 2


def between(levels, largest=1.0):
    """A block of the largest value and of values on, just below and just above each midpoint."""
    middle = midpoints(levels)
    up, down = (torch.nextafter(middle, torch.tensor(end)) for end in (2.0, -2.0))
    return torch.cat([torch.ones(1), middle, up, down, levels]) * largest


TENSORS = {
    "random": random(64, 192),
    "three-dimensional": random(3, 5, 64),
    "transposed": random(128, 64).T,
    "outliers": random(64, 64) ** 5,
    "bfloat16": random(64, 192).bfloat16(),
    "float16": random(64, 192).half(),
    "constant": torch.full((40, 64), 0.3),
    "constant, negative": torch.full((40, 64), -7.0),
    "all zero": torch.zeros(40, 64),
    "all zero, with a remainder": torch.zeros(101),
    "zero blocks among others": torch.cat([torch.zeros(4096), random(4096)]),
    "a remainder of zeros": torch.cat([random(4096), torch.zeros(7)]),
    "minus zero": torch.full((64,), -0.0),
    "tiny": random(64, 64) * 1e-30,
    "below 1e-38": random(64, 64) * 1e-39,
    "huge": random(64, 64) * 1e37,
    "huge, one block": random(32) * 1e38,
    "near a tie": between(nf4.CODEBOOK).repeat(40),
    "near a tie, scaled": between(nf4.CODEBOOK, 0.3).repeat(40),
    "one": torch.tensor([0.5]),
    "three": torch.tensor([0.5, -2.0, 0.1]),
    "odd": random(101),
    "odd, many blocks": random(40_001),
    "many blocks": random(80_000),
}


@pytest.fixture(autouse=True)
def library_without_compiler():
    """bitsandbytes compiles its way for odd shapes anew for each shape: the same values, later."""
    with torch.compiler.set_stance("force_eager"):
        yield


def assert_equal(ours, theirs, case=""):
    """Equal to the last bit, where NaN has no bits of its own."""
    assert ours.dtype == theirs.dtype, case
    ours, theirs = (x.reshape(-1).nan_to_num(nan=12345, posinf=1e38) for x in (ours, theirs))
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)), case


def each_case():
    """Every weight with every block size, and the words that a failure names it by."""
    for (name, weight), block_size in itertools.product(TENSORS.items(), BLOCK_SIZES):
        yield weight, block_size, f"{name}, blocks of {block_size}"


def test_every_byte_and_scale_is_that_of_bitsandbytes():
    for weight, block_size, case in each_case():
        ours = nf4.quantize(weight, block_size)
        packed, state = library.quantize_4bit(weight, blocksize=block_size, quant_type="nf4")
        assert_equal(ours.packed, packed, case)
        assert_equal(ours.scales, state.absmax, case)
        assert_equal(ours.absmax, state.absmax, case)


@pytest.mark.filterwarnings("ignore:weight is too large")
def test_every_byte_of_double_quantisation_is_that_of_bitsandbytes():
    for weight, block_size, case in each_case():
        ours = nf4.quantize(weight, block_size, double_quant=True)
        packed, state = library.quantize_4bit(
            weight, blocksize=block_size, quant_type="nf4", compress_statistics=True
        )
        assert_equal(ours.packed, packed, case)
        assert_equal(ours.scales.codes, state.absmax, case)
        assert_equal(ours.scales.absmax, state.state2.absmax, case)
        assert_equal(ours.scales.offset, state.offset, case)
        theirs = library.dequantize_blockwise(state.absmax, state.state2) + state.offset
        assert_equal(ours.absmax, theirs, case)


@pytest.mark.filterwarnings("ignore:weight is too large")
@pytest.mark.parametrize("double_quant", [False, True])
def test_dequantised_values_are_those_of_bitsandbytes(double_quant):
    for weight, block_size, case in each_case():
        # In a row: with AVX512 the library takes wrong scales where rows are no multiple of the
        # block.
        weight = weight.reshape(-1)
        ours = nf4.quantize(weight, block_size, double_quant).dequantize()
        theirs = library.dequantize_4bit(
            *library.quantize_4bit(
                weight, blocksize=block_size, quant_type="nf4", compress_statistics=double_quant
            )
        )
        assert_equal(ours, theirs.view(-1), case)


def test_a_scale_near_a_tie_gets_the_code_of_bitsandbytes():
    # The library rounds to one of 65,536 places first, so its ties are where a place changes code.
    places = torch.arange(65536.0) * 2 / 65535 - 1
    codes = torch.bucketize(places, midpoints(nf4.SCALE_CODEBOOK))
    ties = midpoints(places)[codes[1:] != codes[:-1]]
    bits = ties.view(torch.int32)[:, None] + torch.arange(-40, 41, dtype=torch.int32)
    near = bits.view(torch.float32).flatten()
    near = near[near.abs() <= 1]  # around zero, those bits wrap to NaN
    near = near[: len(near) // 127 * 127].view(-1, 127)
    ends = torch.ones(len(near), 1)
    scales = torch.cat([ends, near, -near, -ends], dim=1).flatten()  # a mean of about zero
    ours = nf4._quantize_scales(scales)
    theirs, state = library.quantize_blockwise(scales - scales.mean(), blocksize=256)
    assert_equal(ours.codes, theirs)
    assert_equal(ours.absmax, state.absmax)


def test_the_code_books_are_those_of_bitsandbytes():
    assert_equal(nf4.CODEBOOK, library.get_4bit_type("nf4", device="cpu"))
    assert_equal(nf4.SCALE_CODEBOOK, library.create_dynamic_map())


def test_the_levels_are_normal_quantiles_over_the_largest():
    offset = 1 - (1 / 32 + 1 / 30) / 2
    for levels, count in ((nf4.CODEBOOK[8:], 8), (-nf4.CODEBOOK[:7].flip(0), 7)):
        steps = torch.arange(1, count + 1) / count
        normal = torch.distributions.Normal(0, 1).icdf(0.5 + (offset - 0.5) * steps)
        torch.testing.assert_close(levels, normal / normal[-1], atol=1e-6, rtol=0)
    assert nf4.CODEBOOK[7] == 0


def test_rounding_takes_the_nearest_level():
    weight = random(64 * 50)
    quantized = nf4.quantize(weight)
    scaled = weight.view(-1, 64) / quantized.absmax[:, None]
    nearest = (scaled.view(-1, 1) - nf4.CODEBOOK).abs().argmin(dim=1)
    codes = torch.stack([quantized.packed >> 4, quantized.packed & 15], dim=1).view(-1)
    assert torch.equal(codes.long(), nearest)


@pytest.mark.parametrize("block_size", [1, 2, 16, 8192])
def test_block_sizes_that_bitsandbytes_does_not_take_work_as_well(block_size):
    weight = random(101, 7)
    quantized = nf4.quantize(weight, block_size)
    assert len(quantized.absmax) == -(-weight.numel() // block_size)
    error = (quantized.dequantize() - weight).abs()
    assert error.max() <= 0.16 * weight.abs().max()  # half of the widest gap between two levels
    if block_size == 1:
        torch.testing.assert_close(quantized.dequantize(), weight)


def test_bits_are_counted_from_bytes():
    weight = random(1024, 1024)
    assert nf4.quantize(weight).bits_per_weight == 4.5
    assert nf4.quantize(weight, 256).bits_per_weight == 4.125
    double = nf4.quantize(weight, double_quant=True)
    offset = 4 * 8 / weight.numel()  # one float32 for the whole weight
    assert double.bits_per_weight == 4 + 8 / 64 + 32 / (64 * 256) + offset
    assert round(double.bits_per_weight, 3) == 4.127
    tensors = (double.packed, double.scales.codes, double.scales.absmax, double.scales.offset)
    assert double.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert nf4.quantize(random(8, 8)).nbytes == 32 + 4


def test_the_error_on_gaussian_blocks_is_the_one_that_the_lessons_state():
    weight = random(4096, 64)
    absmax = weight.abs().amax(dim=1, keepdim=True)
    error = (nf4.quantize(weight).dequantize() - weight) / absmax
    assert (error.norm() / (weight / absmax).norm()).item() == pytest.approx(0.0920, abs=5e-4)


def test_dequantising_gives_back_shape_and_dtype_and_quantising_keeps_the_weight():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        weight = random(3, 5, 7).to(dtype).requires_grad_()
        before = weight.detach().clone()
        back = nf4.quantize(weight, double_quant=True).dequantize()
        assert back.shape == weight.shape and back.dtype == dtype and not back.requires_grad
        assert torch.equal(weight, before)


def test_quantising_what_was_dequantised_changes_nothing():
    once = nf4.quantize(random(64, 64))
    twice = nf4.quantize(once.dequantize())
    assert torch.equal(once.packed, twice.packed)
    assert torch.equal(once.absmax, twice.absmax)


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_quantised_weight_moves_to_another_device_whole(double_quant):
    quantized = nf4.quantize(random(64, 64), double_quant=double_quant)
    moved = quantized.to("meta")
    assert moved.device.type == moved.absmax.device.type == "meta"
    assert moved.dequantize().device.type == "meta"
    assert quantized.device.type == "cpu"


def with_one(value):
    weight = random(3, 50)
    weight[2, 49] = value
    return weight


@pytest.mark.parametrize(
    "weight, message",
    [
        (with_one(float("nan")), "1 NaN and 0 inf"),
        (with_one(float("inf")), "0 NaN and 1 inf"),
        (with_one(float("-inf")).half(), "0 NaN and 1 inf"),
        (torch.full((64, 64), float("nan")), "4096 NaN and 0 inf"),
        (torch.ones(64, dtype=torch.int8), "not torch.int8"),
        (torch.ones(64, dtype=torch.bool), "not torch.bool"),
        (torch.ones(64, dtype=torch.float64), "not torch.float64"),
        (torch.ones(0), r"empty: its shape is \[0\]"),
        (torch.ones(4, 0), r"empty: its shape is \[4, 0\]"),
    ],
)
def test_a_weight_that_cannot_be_quantised_is_refused(weight, message):
    with pytest.raises(ValueError, match="weight .*" + message):
        nf4.quantize(weight)


@pytest.mark.parametrize("block_size", [0, -64, 48, 1000, 64.0, "64", None])
def test_a_block_size_that_is_no_power_of_two_is_refused(block_size):
    with pytest.raises(ValueError, match=f"block_size .*power of two, not {block_size}"):
        nf4.quantize(random(64), block_size)


def test_scales_whose_mean_overflows_warn_and_work_without_double_quantisation():
    weight = torch.full((1024,), 3e38)
    with pytest.warns(UserWarning, match="too large for double_quant"):
        assert nf4.quantize(weight, double_quant=True).dequantize().isnan().all()
    torch.testing.assert_close(nf4.quantize(weight).dequantize(), weight)


def test_the_layers_by_hand_need_torch_alone(python):
    code = "import qlora_kit.nf4, qlora_kit.lora, qlora_kit.qlora, sys; print(*sys.modules)"
    loaded = set(python(code).stdout.split())
    assert "torch" in loaded
    assert not loaded & {"bitsandbytes", "peft", "transformers", "scipy"}
