"""QLoRA's layer: LoRA around a weight that is kept in 4 bits (arXiv 2305.14314, equation 5)."""

import torch
from torch import nn

from qlora_kit import lora, nf4


class Matmul4bit(torch.autograd.Function):
    """x W^T for a QuantizedWeight: x [..., in] to [..., out], with a gradient for x alone.

    The backward pass needs W as well. Keeping the dequantised copy for it would give back all the
    memory that 4 bits saved, so only the codes are kept, and W is dequantised a second time.
    """

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x @ weight.dequantize().to(x.dtype).T

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None


class NF4Linear(nn.Module):
    """A frozen linear layer with its weight in NF4: the base of a QLoRALinear.

    `weight` is a QuantizedWeight and so no part of `state_dict`, as a QLoRA adapter is saved
    without its base: quantise the same weight again to go on.
    """

    def __init__(self, linear, double_quant):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nf4.quantize(linear.weight, double_quant=double_quant)
        self.bias = linear.bias

    def forward(self, x):
        y = Matmul4bit.apply(x, self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, move, recurse=True):
        # `.to()` comes through here. The weight follows to another device but not to another dtype,
        # where its scales would be other scales: `move` leaves the dtype of integers alone.
        self.weight = self.weight.to(move(self.weight.packed).device)
        return super()._apply(move, recurse)

    def extra_repr(self):
        bits = f"{self.weight.bits_per_weight:.4g} bits a weight"
        return f"{self.in_features} -> {self.out_features}, {bits}"


class QLoRALinear(lora.LoRALinear):
    """y = dequantised(W) x + bias + scaling * B A x, gradients in A, B and x alone.

    base: an nn.Linear or a weight [out, in], which is quantised in blocks of 64 and not kept; its
    scales are quantised too, unless `double_quant` is False. The other arguments and the errors are
    those of LoRALinear and `nf4.quantize`.
    """

    def __init__(self, base, rank, alpha, dropout=0.0, double_quant=True):
        super().__init__(NF4Linear(lora.linear(base), double_quant), rank, alpha, dropout)
