"""NF4, the 4-bit format of QLoRA: sixteen levels, one scale a block, two codes a byte.

Derived from QLoRA (Dettmers et al. 2023, arXiv 2305.14314), section 3 and appendix E. Where the
paper leaves a choice open, bitsandbytes decided: on a CPU, every byte equals the library's.
"""

import warnings
from dataclasses import dataclass, replace

import torch

SECOND_BLOCK = 256  # scales that share a second-level scale in double quantisation
TINY = 1e-38  # the smallest number that a block is divided by: 1 / TINY still fits into float32


def _nf4_levels():
    """Quantiles of the normal distribution, 7 below zero, 8 above and 0, divided by the largest.

    The outermost cannot lie at probability 1, which is at infinity: 0.9677083 is the mean of 1 -
    1/32 and 1 - 1/30, half a step from the end with 16 and with 15 levels. float32 and float64
    are mixed as they were for the published levels, so that these agree to the last bit.
    """
    above = torch.linspace(0.9677083, 0.5, 9, dtype=torch.float32)[:-1]
    below = torch.linspace(0.9677083, 0.5, 8, dtype=torch.float32)[:-1]
    quantile = torch.special.ndtri
    levels = [-quantile(below.double()), torch.zeros(1), quantile(above.double()).flip(0)]
    levels = torch.cat(levels).float()
    return levels / levels.max()


def _scale_levels():
    """The signed 8-bit dynamic format (Dettmers 2016, arXiv 1511.04561), for the scales' scales.

    Seven decades below 1 on either side of 0: the largest has 64 evenly spaced levels, and each
    smaller one half as many as the one before. With 0 and 1 that makes 256.
    """
    decades = []
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        decades.append(10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2)
    above = torch.cat(decades)
    return torch.cat([-above, above, above.new_tensor([0.0, 1.0])]).sort().values


CODEBOOK = _nf4_levels()  # float32 [16], ascending, from -1 over an exact 0 to 1
SCALE_CODEBOOK = _scale_levels()  # float32 [256], ascending


@dataclass(frozen=True, eq=False)
class QuantizedScales:
    """Scales that are quantised themselves: "double quantisation" (QLoRA, section 3).

    codes: uint8 [blocks], indices into SCALE_CODEBOOK. absmax: float32 [ceil(blocks / 256)].
    offset: float32 scalar, the mean of all scales; scales are positive, and without their mean
    they use both halves of the code book.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    offset: torch.Tensor

    @property
    def nbytes(self):
        return self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes

    def dequantize(self):
        """The scales as float32 [blocks]."""
        levels = SCALE_CODEBOOK.to(self.codes.device)[self.codes.int()]
        absmax = self.absmax.repeat_interleave(SECOND_BLOCK)[: len(levels)]
        return levels * absmax + self.offset

    def to(self, device):
        return QuantizedScales(*(part.to(device) for part in vars(self).values()))


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight in NF4.

    packed: uint8 [ceil(weights / 2)], two codes a byte, the first in the upper four bits.
    scales: float32 [blocks], the largest magnitude (absmax) of each block, or QuantizedScales.
    shape and dtype are those of the weight; a block is `block_size` weights in a row, whatever
    the shape, and the last block may be shorter.
    """

    packed: torch.Tensor
    scales: torch.Tensor | QuantizedScales
    shape: torch.Size
    dtype: torch.dtype
    block_size: int

    @property
    def absmax(self):
        """The scales that `dequantize` multiplies by, float32 [blocks]."""
        doubly = isinstance(self.scales, QuantizedScales)
        return self.scales.dequantize() if doubly else self.scales

    @property
    def device(self):
        return self.packed.device

    @property
    def nbytes(self):
        """Bytes of codes and scales; the two code books are the same for all weights."""
        return self.packed.nbytes + self.scales.nbytes

    @property
    def bits_per_weight(self):
        return 8 * self.nbytes / self.shape.numel()

    def dequantize(self):
        """The weight that the codes stand for: level times absmax, in the weight's own dtype."""
        # Looking up a byte at a time in a table of all 256 pairs takes half as many look-ups. As
        # one int64 a pair is moved in one piece, which takes nearly a third less time.
        levels = CODEBOOK.to(self.device)
        pairs = torch.cartesian_prod(levels, levels).view(torch.int64).view(-1)
        values = pairs.index_select(0, self.packed.int()).view(torch.float32)
        absmax, size = self.absmax, self.block_size
        whole = self.shape.numel() // size
        values[: whole * size].view(whole, size).mul_(absmax[:whole, None])
        values[whole * size :] *= absmax[-1]  # the shorter last block, if there is one
        return values[: self.shape.numel()].view(self.shape).to(self.dtype)

    def to(self, device):
        return replace(self, packed=self.packed.to(device), scales=self.scales.to(device))


def quantize(weight, block_size=64, double_quant=False):
    """A weight of any shape as a QuantizedWeight (QLoRA, section 3).

    Each block is divided by its absmax, and each result rounded to the nearest level of CODEBOOK.
    64 weights a block cost 4 + 32/64 = 4.5 bits a weight. With `double_quant` the scales take
    8 bits and every 256 of them a float32 scale: 4 + 8/64 + 32/(64 * 256) = 4.127 bits.

    Raises ValueError for a weight that is not float32, float16 or bfloat16, is empty or holds NaN
    or infinity, and for a block size that is not a positive power of two. Warns if the mean of the
    scales, for `double_quant`, overflows: dequantising then gives NaN, as in the library.
    """
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"weight must be float32, float16 or bfloat16, not {weight.dtype}")
    if weight.numel() == 0:
        raise ValueError(f"weight is empty: its shape is {list(weight.shape)}")
    if not isinstance(block_size, int) or block_size < 1 or block_size & (block_size - 1):
        raise ValueError(f"block_size must be a positive power of two, not {block_size}")

    flat = weight.detach().reshape(-1).float()
    whole = flat.numel() // block_size
    blocks, rest = flat[: whole * block_size].view(whole, block_size), flat[whole * block_size :]
    absmax = blocks.abs().amax(dim=1)
    # bitsandbytes multiplies whole blocks by a reciprocal and divides a shorter last one. The two
    # round differently, which moves about one code in ten million.
    scaled = (blocks * (1 / absmax.clamp(min=TINY))[:, None]).view(-1)
    if len(rest):
        last = rest.abs().amax().clamp(min=TINY)
        absmax = torch.cat([absmax, last[None]])
        scaled = torch.cat([scaled, rest / last])
    if not absmax.isfinite().all():  # a NaN or infinity is the absmax of its block
        nan, infinite = weight.isnan().sum(), weight.isinf().sum()
        raise ValueError(
            f"weight must be finite, but holds {nan} NaN and {infinite} infinite values"
        )

    codes = _nearest(scaled, CODEBOOK)
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_tensor([7])])  # the code of zero fills the last byte
    packed = codes[0::2] << 4 | codes[1::2]
    scales = _quantize_scales(absmax) if double_quant else absmax
    return QuantizedWeight(packed, scales, weight.shape, weight.dtype, block_size)


def _quantize_scales(absmax):
    offset = absmax.mean()
    if not offset.isfinite():
        message = "weight is too large for double_quant: the mean of its scales overflows"
        warnings.warn(message, stacklevel=3)
    padding = -len(absmax) % SECOND_BLOCK
    blocks = torch.nn.functional.pad(absmax - offset, (0, padding)).view(-1, SECOND_BLOCK)
    second = blocks.abs().amax(dim=1)
    scaled = (blocks * (1 / second)[:, None]).clamp(-1, 1)
    scaled = scaled.nan_to_num(nan=-1)  # 0 * (1 / 0): the library gives code 0 where all are equal
    # bitsandbytes' CPU kernel finds the level with a table of 65,536 places between -1 and 1, so a
    # value is first rounded to its place.
    place = ((scaled + 1) * 32767.5 + 0.5).floor()
    codes = _nearest((place * 2 / 65535 - 1).view(-1)[: len(absmax)], SCALE_CODEBOOK)
    return QuantizedScales(codes, second, offset)


def _nearest(values, levels):
    """The index of the level nearest to each value, as uint8."""
    midpoints = (levels[:-1] + levels[1:]) / 2
    return torch.bucketize(values, midpoints.to(values.device), out_int32=True).to(torch.uint8)
