"""What a GPU does otherwise than a CPU, for the X-ray: kernels, copies and autocast."""

import contextlib
from unittest import mock

import torch

from qlora_kit.memory import internals


@contextlib.contextmanager
def as_on_a_gpu(gpu):
    """Inside, torch, transformers and TRL take the ways that they take on a GPU."""

    def dropout(x, p=0.5, training=True, inplace=False):
        # A GPU keeps a mask of one byte, where torch's general form keeps a second input.
        return torch.native_dropout(x, p, training)[0] if p and training else x

    functional = mock.patch.multiple(
        torch.nn.functional,
        scaled_dot_product_attention=cuda_attention(gpu.flash),
        softmax=cuda_softmax,
        dropout=dropout,
    )
    # Without packed rows there is no mask for them; with meta tensors transformers cannot tell.
    # TRL's own kernels work in place on a tile of logits; their stand-ins in torch copy it.
    with contextlib.ExitStack() as inside:
        inside.enter_context(functional)
        for name in (internals.PACKED_ROWS, *internals.TILE_KERNELS):
            inside.enter_context(mock.patch(name.replace(":", "."), nothing))
        yield


def nothing(*_, **__):
    return None


def cuda_attention(flash):
    """`scaled_dot_product_attention` as a GPU runs it: which kernel, and what is copied for it.

    Flash attention (compute capability 8.0 on) takes 16-bit inputs without a mask, and grouped
    keys as they are. All else goes to the memory-efficient kernel, for which grouped keys and
    values are copied to full width and a boolean mask becomes a float one.
    """

    def attend(
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    ):
        if torch.is_autocast_enabled():
            half = torch.get_autocast_dtype("cuda")
            query, key, value = (x.to(half) for x in (query, key, value))
        if flash and attn_mask is None and query.dtype != torch.float32:
            kernel = internals.find(internals.FLASH_ATTENTION)
            return kernel(query, key, value, dropout_p, is_causal, scale=scale)[0]
        groups = query.shape[-3] // key.shape[-3]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=-3) for x in (key, value))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, 1)
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        kernel = internals.find(internals.EFFICIENT_ATTENTION)
        return kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]

    return attend


def cuda_softmax(x, dim, dtype=None):
    """`softmax` as a GPU runs it: from float16 to float32 without a copy of the input."""
    if x.dtype == torch.float16 and dtype == torch.float32:
        return torch.ops.aten._softmax(x, dim, True)
    return torch.softmax(x, dim, dtype=dtype)


@contextlib.contextmanager
def autocast(on, half):
    """16-bit autocast as a GPU does it, for meta tensors, for which torch has none.

    Of the operations that autocast lowers, these models call `linear`, attention (which casts in
    `cuda_attention`) and, in eager attention, `matmul`; a 4-bit product casts its input itself. The
    cast of a trained parameter is kept until the end of the forward pass, as in torch's cache.
    Yields what ends that pass.
    """
    casts = {}
    forward = True
    linear, matmul = torch.nn.functional.linear, torch.matmul

    def cast(tensor):
        if tensor is None or tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(half)
        if id(tensor) in casts:
            return casts[id(tensor)]
        lower = tensor.to(half)
        if forward:
            casts[id(tensor)] = lower
        return lower

    def end_of_forward():
        nonlocal forward
        forward = False
        casts.clear()

    def lowered(x, weight, bias=None):
        return linear(cast(x), cast(weight), cast(bias))

    def multiplied(left, right):
        return matmul(cast(left), cast(right))

    asked = mock.patch.multiple(  # by PEFT and TRL
        torch, is_autocast_enabled=lambda *_: on, get_autocast_dtype=lambda _: half
    )
    used = mock.patch.object(torch.nn.functional, "linear", lowered if on else linear)
    scores = mock.patch.object(torch, "matmul", multiplied if on else matmul)
    with asked, used, scores:
        yield end_of_forward
