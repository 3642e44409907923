"""LoRA: a frozen matrix and, parallel to it, a trainable detour through a narrow place.

Hu et al. 2021, arXiv 2106.09685, section 4.1, with the shapes and the start values of PEFT.
"""

import math
import warnings

import torch
from torch import nn


class LoRALinear(nn.Module):
    """y = W x + bias + scaling * B A x: W and the bias frozen, A [rank, in] and B [out, rank] not.

    base: an nn.Linear, which is frozen in place, or a weight [out, in]. alpha: scaling is alpha /
    rank. dropout: the share of x that the detour does not see while training. B starts at zero, so
    the layer starts as its base; A starts at random, for if both were zero neither would get a
    gradient. Both are float32 whatever the base is; y has the dtype that the base gives it.

    rsLoRA (arXiv 2312.03732) is the same layer with `layer.scaling = alpha / math.sqrt(rank)`.

    Raises ValueError for a rank below 1 and for a base that is no matrix of finite floating-point
    numbers. Warns of a rank above the full rank of W: such an A and B waste numbers.
    """

    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__()
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank must be a whole number of at least 1, not {rank}")
        self.base = linear(base).requires_grad_(False)
        self.in_features, self.out_features = self.base.in_features, self.base.out_features
        full = min(self.in_features, self.out_features)
        if rank > full:
            what = f"{self.out_features} x {self.in_features} matrix, {full}"
            warnings.warn(f"rank {rank} is above the full rank of a {what}", stacklevel=2)
        self.rank, self.scaling = rank, alpha / rank
        self.dropout = nn.Dropout(dropout)
        where = {"dtype": torch.float32, "device": self.base.weight.device}
        self.A = nn.Parameter(torch.empty(rank, self.in_features, **where))
        self.B = nn.Parameter(torch.zeros(self.out_features, rank, **where))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # uniform within 1 / sqrt(in)

    def forward(self, x):
        """x [..., in] to [..., out]. ValueError if x has another width or holds integers."""
        if x.shape[-1:] != (self.in_features,) or not x.is_floating_point():
            wanted = f"floating-point [..., {self.in_features}]"
            raise ValueError(f"x must be {wanted}, not {x.dtype} {list(x.shape)}")
        y = self.base(x)
        detour = self.dropout(x.to(self.A.dtype)) @ self.A.T @ self.B.T
        return (y + self.scaling * detour).to(y.dtype)

    def extra_repr(self):
        return f"rank={self.rank}, scaling={self.scaling:g}"


def linear(base):
    """The base of a LoRALinear: a linear layer as it is, a weight [out, in] as one without bias."""
    if isinstance(base, torch.Tensor):
        if base.dim() != 2:
            raise ValueError(f"weight must be a matrix [out, in], not of shape {list(base.shape)}")
        weight = nn.Parameter(base.detach(), requires_grad=False)
        base = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        base.weight = weight
    if not hasattr(base, "in_features"):
        raise ValueError(f"base must be a linear layer or a weight, not {type(base).__name__}")
    if isinstance(base, nn.Linear):
        if not base.weight.is_floating_point():
            raise ValueError(f"weight must hold floating-point numbers, not {base.weight.dtype}")
        if base.weight.numel() == 0:
            raise ValueError(f"weight is empty: its shape is {list(base.weight.shape)}")
        if not base.weight.isfinite().all():
            nan, infinite = base.weight.isnan().sum(), base.weight.isinf().sum()
            raise ValueError(f"weight must be finite, but holds {nan} NaN and {infinite} infinite")
    return base
