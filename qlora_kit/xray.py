"""An X-ray of one training step: every storage of the real model, without a GPU or any weights.

The model is built by transformers, PEFT and bitsandbytes as for a real run, but of fake tensors,
which have a shape and a dtype and no data (torch's meta device). One step runs through it while a
dispatch mode notes each storage that comes and goes. Replayed through the rules of CUDA's caching
allocator, the trace gives what `torch.cuda.max_memory_allocated` would say.
"""

import contextlib
import weakref
from collections import Counter
from dataclasses import dataclass
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qlora_kit import allocator, memory
from qlora_kit.errors import KitError

# Operations that need a word of their own.
GEMM = "gemm_4bit"
DEQUANTISE = ("dequantize_4bit", "dequantize_blockwise")
SOFTMAX_BACKWARD = "_softmax_backward_data"


@dataclass(frozen=True)
class XRay:
    """What a traced run allocated.

    `timeline` holds the live bytes by category before the step and after each of its allocations
    and frees, `phases` where in it each phase begins. `peak` is the most bytes alive there,
    `peak_allocated` the same as CUDA's allocator would count them, `peak_reserved` what it would
    have taken from the GPU. All in bytes.
    """

    timeline: list[dict]
    phases: dict
    peak: int
    peak_allocated: int
    peak_reserved: int

    @property
    def at_peak(self):
        """Bytes by category at the fullest moment. They add up to `peak`."""
        return max(self.timeline, key=lambda moment: sum(moment.values()))

    @property
    def terms(self):
        """The terms of `memory` at the fullest moment, with the allocator's gaps as one more.

        They add up to `peak_allocated`.
        """
        terms = {name: self.at_peak.get(name, 0) for name in memory.TERMS}
        return terms | {"gaps in blocks": self.peak_allocated - self.peak}

    @property
    def static(self):
        """Bytes that are there before the step begins: weights, adapter, optimizer, workspace."""
        return sum(self.timeline[0].values())


class Tracker(TorchDispatchMode):
    """Notes every storage that an operation makes, by category, until it is freed.

    `category` is what new storages are called; hooks move it along the step. `events` is the list
    of (storage, bytes), with negative bytes for a free, in the order in which they happened.
    """

    def __init__(self):
        super().__init__()
        self.category = "layer activations"
        self.live = {}
        self.totals = Counter(dict.fromkeys(memory.TERMS, 0))
        self.events = []
        self.timeline = []
        self.numbers = iter(range(2**62))

    def note(self, tensor, category):
        """Count a tensor's storage, or move it to another category if it is known already."""
        storage = tensor.untyped_storage()
        known = self.live.get(storage._cdata)
        if known is None:
            size = allocator.rounded(storage.nbytes())
            self.live[storage._cdata] = self.take(size, category)
            weakref.finalize(storage, self.forget, storage._cdata).atexit = False
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
        self.release(self.live.pop(key))

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
        if flash and attn_mask is None and query.dtype != torch.float32:
            kernel = torch.ops.aten._scaled_dot_product_flash_attention
            return kernel(query, key, value, dropout_p, is_causal, scale=scale)[0]
        groups = query.shape[-3] // key.shape[-3]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=-3) for x in (key, value))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.empty_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, 1)
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        return kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]

    return attend


def cuda_softmax(x, dim, dtype=None):
    """`softmax` as a GPU runs it: from float16 to float32 without a copy of the input."""
    if x.dtype == torch.float16 and dtype == torch.float32:
        return torch.ops.aten._softmax(x, dim, True)
    return torch.softmax(x, dim, dtype=dtype)


def build(architecture, setup, half):
    """The model on the meta device, with its linear layers in 4 bit and its adapters attached."""
    import peft
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    config = AutoConfig.for_model(**architecture.config)
    config.use_cache = False
    dtype = half
    if setup.method == "full":
        dtype = dtype_of(setup.adapter_dtype, half)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=setup.attention
        )
    model.tie_weights()
    model.train()
    if setup.loss == "tiled":
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))  # as SFTTrainer does
    if setup.method == "full":
        return model
    if setup.method == "qlora":
        to_4bit(model, setup.double_quant, dtype_of(setup.compute_dtype, half))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=setup.rank,
            lora_dropout=setup.dropout,
            target_modules="all-linear" if setup.targets == memory.LINEARS else list(setup.targets),
            task_type="CAUSAL_LM",
        ),
    )


def to_4bit(model, double_quant, compute_dtype):
    """Replace every linear layer but the output layer by bitsandbytes' 4-bit one, on meta."""
    import bitsandbytes

    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is torch.nn.Linear and linear is not head:
                layer = bitsandbytes.nn.Linear4bit(
                    linear.in_features,
                    linear.out_features,
                    bias=linear.bias is not None,
                    compute_dtype=compute_dtype,
                    compress_statistics=double_quant,
                    quant_type="nf4",
                    device="meta",
                )
                setattr(parent, name, layer)
    model.is_loaded_in_4bit = True


def fill(model, setup, half, tracker):
    """Give every parameter and buffer of a meta model a fake tensor, and note its category."""
    import bitsandbytes

    seen = {}
    trainable = dtype_of(setup.adapter_dtype, half)
    kept = torch.float32 if setup.prepare_kbit else half
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in seen:
                if isinstance(module, bitsandbytes.nn.Linear4bit) and name == "weight":
                    seen[id(parameter)] = packed(parameter, setup, half, tracker)
                else:
                    dtype = trainable if parameter.requires_grad else kept
                    fake = torch.nn.Parameter(
                        torch.empty(parameter.shape, dtype=dtype), parameter.requires_grad
                    )
                    adapter = parameter.requires_grad and setup.method != "full"
                    tracker.note(fake, "adapter" if adapter else "unquantised weights")
                    seen[id(parameter)] = fake
            module._parameters[name] = seen[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
                tracker.note(module._buffers[name], "unquantised weights")


def dtype_of(name, half):
    """The torch dtype of that name, where a GPU without bfloat16 takes float16."""
    return torch.float32 if name == "float32" else half


def packed(parameter, setup, half, tracker):
    """A fake 4-bit weight with its quantisation state, as bitsandbytes makes it."""
    from bitsandbytes.functional import QuantState

    def constant(*shape, dtype=torch.float32):
        fake = torch.empty(shape, dtype=dtype)
        tracker.note(fake, "quantisation constants")
        return fake

    elements = parameter.numel()
    blocks = -(-elements // 64)
    fake = torch.nn.Parameter(torch.empty((elements + 1) // 2, 1, dtype=torch.uint8), False)
    tracker.note(fake, "quantised weights")
    state = QuantState(
        absmax=constant(blocks),
        shape=parameter.shape,
        code=constant(16),
        blocksize=64,
        quant_type="nf4",
        dtype=dtype_of(setup.compute_dtype, half),
    )
    if setup.double_quant:
        state.absmax = constant(blocks, dtype=torch.uint8)
        state.offset = constant()
        state.state2 = QuantState(
            absmax=constant(-(-blocks // 256)),
            code=constant(256),
            blocksize=256,
            dtype=torch.float32,
        )
        state.nested = True
    fake.quant_state = state
    return fake


def make_states(optimizer, parameters, tracker):
    """Let the optimizer make its states, as it has after the first step of a training."""
    tracker.category = "optimizer"
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


class States:
    """An optimizer's states without its arithmetic, for those that need kernels of a GPU."""

    def __init__(self, parameters, name, tracker):
        self.parameters, self.name, self.tracker = list(parameters), name, tracker
        self.states = []

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None

    def step(self):
        if self.states:
            return
        for parameter in self.parameters:
            sizes = memory.optimizer_states(self.name, parameter.numel(), parameter.element_size())
            self.states += [torch.empty(size, dtype=torch.uint8) for size in sizes]
        for state in self.states:
            self.tracker.note(state, "optimizer")


def make_optimizer(parameters, setup, tracker):
    if setup.optimizer == "adamw_torch":
        # On a GPU torch updates all parameters together, which the CPU would not do by itself.
        return torch.optim.AdamW(parameters, foreach=True)
    return States(parameters, setup.optimizer, tracker)


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
    rows = mock.patch("transformers.masking_utils.find_packed_sequence_indices", nothing)
    # TRL's own kernels work in place on a tile of logits; their stand-ins in torch copy it.
    kernels = mock.patch.multiple(
        "trl.kernels.chunked_logprob",
        _forward_tile=nothing,
        _backward_tile=nothing,
        _addmm_fp32=nothing,
    )
    with functional, rows, kernels:
        yield


def nothing(*_, **__):
    return None


def trace(architecture, setup, gpu):
    """Run a fake training step, with the optimizer's states there already; return its XRay.

    architecture: an `architectures.Architecture`; setup: a `memory.Setup`; gpu: a `memory.Gpu`.
    Raises KitError for an architecture that transformers cannot build or that has no decoder of
    the usual form (`layers`, then a `norm`).
    """
    half = torch.bfloat16 if gpu.flash else torch.float16
    try:
        model = build(architecture, setup, half)
        decoder = decoder_of(model)
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise KitError(f"The X-ray cannot build {architecture.name}: {error}") from None
    if not hasattr(decoder, "layers") or not hasattr(decoder, "norm"):
        raise KitError(
            f"The X-ray cannot see into {architecture.name} (model type "
            f"{architecture.model_type}): it looks for `layers` and a `norm` after them."
        )
    tracker = Tracker()
    with as_on_a_gpu(gpu), torch.device("meta"):
        fill(model, setup, half, tracker)
        if setup.checkpointing:
            # transformers 5.23 renamed it; Colab's 5.15 knows the old name only.
            new = "activation_checkpointing_enable"
            enable = getattr(model, new if hasattr(model, new) else "gradient_checkpointing_enable")
            enable({"use_reentrant": False, "preserve_rng_state": False})
            model.enable_input_require_grads()
        watch(model, tracker, setup.checkpointing)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_optimizer(trainable, setup, tracker)
        with tracker:
            ids = torch.ones(setup.batch, setup.seq, dtype=torch.long)
            tracker.take(gpu.workspace, "workspace")
            make_states(optimizer, trainable, tracker)
            start, phases = len(tracker.events), {}
            one_step(model, ids, setup, half, optimizer, tracker, phases)
        timeline = tracker.timeline[start - 1 :]
        events = list(tracker.events)
    allocated, reserved = allocator.replay(events, start - 1)
    return XRay(
        timeline=timeline,
        phases={name: number - start + 1 for name, number in phases.items()},
        peak=max(sum(moment.values()) for moment in timeline),
        peak_allocated=allocated,
        peak_reserved=reserved,
    )


def one_step(model, ids, setup, half, optimizer, tracker, phases):
    phases["forward"] = len(tracker.events)
    tracker.category = "layer activations"
    with autocast(setup.mixed, half) as end_of_forward:
        arguments = {"fused_lm_head": True} if setup.loss == "tiled" else {}
        outputs = model(input_ids=ids, labels=ids, **arguments)
        end_of_forward()
        loss = outputs.loss
        if not setup.keep_outputs:
            outputs = None
        phases["backward"] = len(tracker.events)
        loss.backward()  # a checkpoint's second forward pass runs under autocast again
    phases["optimizer"] = len(tracker.events)
    tracker.category = "optimizer"
    optimizer.step()


@contextlib.contextmanager
def autocast(on, half):
    """16-bit autocast as a GPU does it, for meta tensors, for which torch has none.

    Of the operations that autocast lowers, `linear` is the one that these models call with
    anything but 16 bits (the 4-bit product casts its input itself). The cast of a parameter is
    kept until the end of the forward pass, as in torch's cache. Yields what ends that pass.
    """
    casts = {}
    forward = True
    linear = torch.nn.functional.linear

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

    asked = mock.patch.multiple(  # by PEFT and TRL
        torch, is_autocast_enabled=lambda *_: on, get_autocast_dtype=lambda _: half
    )
    used = mock.patch.object(torch.nn.functional, "linear", lowered if on else linear)
    with asked, used:
        yield end_of_forward
