"""Quirks of TRL's trainer, each in one function with its reason and the version that it is for.

`fit_to_machine` applies those that a machine needs.
"""

import os

import torch
import trl.trainer.utils
from peft.tuners.tuners_utils import BaseTunerLayer

from qlora_kit import compat


def fit_to_machine(trainer, dtypes):
    """Make a new trainer fit `models.pick_dtypes()`; a line says what was done and why.

    Call it once, before `train()`.
    """
    adapters_to_float32(trainer.model)
    print("The adapter is float32: TRL makes it bfloat16, where small updates are lost.")
    if dtypes.loss_scale != 1:
        scale_loss(trainer, dtypes.loss_scale)
        print(f"The loss is scaled by {dtypes.loss_scale:,}: its gradients are small for float16.")
    if dtypes.device == "cpu":
        project_labelled_tokens_only()
        print("The output layer skips tokens without a label: on a CPU, TRL computes them too.")


def without_adapter(model):
    """The model as it was before a trainer put an adapter on it; any other as it is.

    PEFT puts the adapter into the layers of the model that it is given, and the trainer keeps the
    wrapper. A trainer that is built again, by a notebook's cell that is run twice, would find the
    adapter of the first one, and PEFT 0.21 warns of several. Its own `unload` wants the wrapper.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    vars(model).pop("peft_config", None)
    return model


def start_over(trainer):
    """Let a second `train()` begin as the first did, unless it is given a checkpoint.

    A trainer (transformers 5.23) counts its steps from 0 again, but goes on with the adapter and
    with Adam's moments that the first `train()` has left. Call it once, before `train()`, and after
    `adapters_to_float32`. It keeps a copy of the adapter's start.
    """
    train = trainer.train
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    start = [p.detach().cpu().clone() for p in trained]

    def train_again(*args, **kwargs):
        if trainer.state.global_step:
            trainer.optimizer = trainer.lr_scheduler = None
            os.makedirs(trainer.args.output_dir, exist_ok=True)  # the end of a run removes it
            for parameter, value in zip(trained, start, strict=True):
                parameter.data.copy_(value)
        return train(*args, **kwargs)

    trainer.train = train_again


def checkpointing(on):
    """The SFTConfig argument that switches activation checkpointing, under its present name."""
    return {compat.CHECKPOINTING: on}


def adapters_to_float32(model):
    """Cast the trainable parameters to float32; call it after the trainer is built.

    TRL 1.16 casts them to bfloat16 when the base is in 4 bit. Small updates are lost in bfloat16's
    8 bits, a T4 fails on it at the first step, and most CPUs multiply it a hundred times slower.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def scale_loss(trainer, scale):
    """Multiply what the backward pass carries by `scale`; call it after `adapters_to_float32`.

    A trainer divides the loss by all learnt tokens of a step, and where products are float16
    (`Dtypes.loss_scale`), the small gradients of a long batch become zero. Here the gradient is
    multiplied where it leaves the loss, and divided where it arrives at a trained parameter, which
    is float32. A power of two loses no digit there. So the loss in the log, the norm that is
    clipped, accumulated batches and Adam's epsilon are those of an unscaled run. (That Adam ignores
    a constant is true of large gradients only: epsilon does not grow with them.)
    """
    if scale == 1:
        return
    compute_loss = trainer.compute_loss

    def scaled(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)  # with outputs beside it where nothing is trained
        if isinstance(loss, torch.Tensor) and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * scale)
        return loss

    trainer.compute_loss = scaled
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: gradient / scale)


def project_labelled_tokens_only():
    """Let TRL project only labelled tokens through the output layer on a CPU, as on a GPU.

    TRL 1.16 leaves the others out only where Triton runs; on a CPU it computes the logits of every
    prompt token, and throws them away. The loss and the gradients are the same either way.
    """
    trl.trainer.utils._use_triton = lambda device: True
