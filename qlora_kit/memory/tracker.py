"""Notes each storage of a training step as it comes and goes, by category.

The X-ray runs it over fake tensors, the meter over real ones.
"""

import weakref
from collections import Counter

import torch

from qlora_kit.memory import allocator, internals
from qlora_kit.memory.moments import TERMS

TorchDispatchMode = internals.find(internals.DISPATCH)

# Operations that need a word of their own.
GEMM = "gemm_4bit"
DEQUANTISE = ("dequantize_4bit", "dequantize_blockwise")
SOFTMAX_BACKWARD = "_softmax_backward_data"


class Tracker(TorchDispatchMode):
    """Notes every storage that an operation makes, by category, until it is freed.

    `category` is what new storages are called; hooks move it along the step. `events` is the list
    of (storage, bytes), with negative bytes for a free, in the order in which they happened.
    """

    def __init__(self):
        super().__init__()
        self.category = "layer activations"
        self.live = {}
        self.totals = Counter(dict.fromkeys(TERMS, 0))
        self.events = []
        self.timeline = []
        self.numbers = iter(range(2**62))
        self.ends = {}

    def note(self, tensor, category):
        """Count a tensor's storage, or move it to another category if it is known already."""
        storage = tensor.untyped_storage()
        known = self.live.get(storage._cdata)
        if known is None:
            size = allocator.rounded(storage.nbytes())
            self.live[storage._cdata] = self.take(size, category)
            end = self.ends[storage._cdata] = weakref.finalize(storage, self.forget, storage._cdata)
            end.atexit = False
        elif known[1] != category:
            number, old, size = known
            self.totals[old] -= size
            self.totals[category] += size
            self.live[storage._cdata] = number, category, size

    def category_of(self, tensor):
        return self.live.get(tensor.untyped_storage()._cdata, (0, None, 0))[1]

    def take(self, size, category):
        number = next(self.numbers)
        self.totals[category] += size
        self.event(number, size)
        return number, category, size

    def release(self, taken):
        number, category, size = taken
        self.totals[category] -= size
        self.event(number, -size)

    def forget(self, key):
        del self.ends[key]
        self.release(self.live.pop(key))

    def __exit__(self, *error):
        """Stop watching: what is freed from now on is no part of the step."""
        for end in self.ends.values():
            end.detach()
        self.ends.clear()
        return super().__exit__(*error)

    def event(self, number, size):
        if size:
            self.events.append((number, size))
            self.timeline.append(dict(self.totals))

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function._opname
        inner = []
        if name == GEMM:
            # On a GPU this one operation rebuilds the weight, multiplies, and drops it again.
            inner = [
                self.take(allocator.rounded(size), "dequantised weights")
                for size in dequantised(*arguments, **(keywords or {}))
            ]
        result = function(*arguments, **(keywords or {}))
        category = self.category
        if name == SOFTMAX_BACKWARD:
            # A GPU multiplies gradient and output first (aten/src/ATen/native/cuda/SoftMax.cu).
            inner = [self.take(arguments[0].untyped_storage().nbytes(), category)]
        if name in DEQUANTISE or (
            name == "_to_copy" and self.category_of(arguments[0]) == "dequantised weights"
        ):
            category = "dequantised weights"
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and self.category_of(tensor) is None:
                self.note(tensor, category)
        for taken in inner:
            self.release(taken)
        return result


def dequantised(x, packed, shape, absmax, block, kind, bias=None, absmax_8bit=None, *_):
    """Sizes of what a GPU's `gemm_4bit` allocates inside: the constants in float32, the weight.

    As in bitsandbytes 0.50.2, backends/cuda/ops.py, where the product has over 1,536 rows or the
    weight is small; short batches may use a kernel that needs none of this.
    """
    constants = [4 * absmax_8bit.numel()] * 2 if absmax_8bit is not None else []
    return [*constants, shape[0] * shape[1] * x.element_size()]


def decoder_of(model):
    """The part of a causal model before its output layer, adapters or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder()


def watch(model, tracker, checkpointing):
    """Hooks that name the storages: what a layer keeps, where the loss begins, the gradients.

    Returns their handles.
    """
    decoder = decoder_of(model)
    handles = []

    def into_layer(module, arguments, keywords):
        tracker.note(arguments[0] if arguments else keywords["hidden_states"], "checkpoints")

    def out_of_decoder(module, arguments, hidden):
        tracker.category = "logits and loss"
        hidden.register_hook(into_decoder)

    def into_decoder(gradient):
        tracker.category = "layer activations"

    if checkpointing:
        for layer in decoder.layers:
            handles.append(layer.register_forward_pre_hook(into_layer, with_kwargs=True))
    handles.append(decoder.norm.register_forward_hook(out_of_decoder))
    for parameter in model.parameters():
        if parameter.requires_grad:
            handles.append(
                parameter.register_post_accumulate_grad_hook(
                    lambda parameter: tracker.note(parameter.grad, "gradients")
                )
            )
    return handles
