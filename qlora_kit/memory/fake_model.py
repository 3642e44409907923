"""A real model's structure with fake tensors: what the X-ray runs a step through.

transformers, PEFT and bitsandbytes build the model as for a real run, on torch's meta device.
"""

import bitsandbytes
import peft
import torch
from bitsandbytes.functional import QuantState
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_kit.memory import internals
from qlora_kit.memory.setup import LINEARS
from qlora_kit.memory.static import optimizer_states


def build(architecture, setup, half):
    """The model on the meta device, with its linear layers in 4 bit and its adapters attached."""
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
        add_fused_lm_head = internals.find(internals.FUSED_HEAD)
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
            target_modules="all-linear" if setup.targets == LINEARS else list(setup.targets),
            task_type="CAUSAL_LM",
        ),
    )


def to_4bit(model, double_quant, compute_dtype):
    """Replace every linear layer but the output layer by bitsandbytes' 4-bit one, on meta."""
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


def make_optimizer(parameters, setup, tracker):
    if setup.optimizer == "adamw_torch":
        # On a GPU torch updates all parameters together, which the CPU would not do by itself.
        return torch.optim.AdamW(parameters, foreach=True)
    return States(parameters, setup.optimizer, tracker)


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
            sizes = optimizer_states(self.name, parameter.numel(), parameter.element_size())
            self.states += [torch.empty(size, dtype=torch.uint8) for size in sizes]
        for state in self.states:
            self.tracker.note(state, "optimizer")
