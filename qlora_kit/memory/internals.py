"""The names that the X-ray borrows from libraries and that may move with any version: all of them.

Each is looked up before a trace. Where one is gone, the message names it, and the version that the
X-ray was made for.
"""

import pkgutil

from qlora_kit.errors import KitError

MADE_FOR = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "bitsandbytes": "0.50.2",
}

# The attention kernels of a GPU, as operations.
FLASH_ATTENTION = "torch.ops:aten._scaled_dot_product_flash_attention"
EFFICIENT_ATTENTION = "torch.ops:aten._scaled_dot_product_efficient_attention"
# TRL's tiled loss, and its kernels for one tile of logits.
FUSED_HEAD = "trl.trainer.utils:add_fused_lm_head"
TILE_KERNELS = tuple(
    f"trl.kernels.chunked_logprob:{name}"
    for name in ("_forward_tile", "_backward_tile", "_addmm_fp32")
)
# transformers' search for packed rows, which needs real numbers.
PACKED_ROWS = "transformers.masking_utils:find_packed_sequence_indices"
# What calls of an operation go through.
DISPATCH = "torch.utils._python_dispatch:TorchDispatchMode"
# The operations of bitsandbytes that the tracker knows by name.
OPERATIONS = tuple(
    f"torch.ops:bitsandbytes.{name}"
    for name in ("gemm_4bit", "dequantize_4bit", "dequantize_blockwise")
)

NAMES = (
    FLASH_ATTENTION,
    EFFICIENT_ATTENTION,
    FUSED_HEAD,
    *TILE_KERNELS,
    PACKED_ROWS,
    DISPATCH,
    *OPERATIONS,
)


def find(name):
    """The object of that name, "module:attribute". Raises KitError where the library lacks it."""
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        library = "bitsandbytes" if "bitsandbytes" in name else name.partition(".")[0]
        made_for = MADE_FOR[library]
        raise KitError(
            f"The X-ray needs {name.replace(':', '.')}, which this version of {library} does not "
            f"have. It was made for {library} {made_for}: install that "
            f"(`pip install {library}=={made_for}`), or use the formulas."
        ) from None


def check():
    """Raise KitError if one of the names is gone."""
    for name in NAMES:
        find(name)
