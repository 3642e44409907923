"""Quirks of the trainer, each in one function."""

import hashlib
import inspect

from tqdm import tqdm


def checkpointing(on):
    """The SFTConfig argument that switches activation checkpointing, under its present name.

    transformers 5.23 renamed gradient_checkpointing; Colab's 5.15 knows the old name only.
    """
    from trl import SFTConfig

    known = inspect.signature(SFTConfig).parameters
    new = "activation_checkpointing"
    return {new if new in known else "gradient_checkpointing": on}


def adapters_to_float32(model):
    """Cast the trainable parameters to float32; call it after the trainer is built.

    TRL 1.16 casts them to bfloat16 when the base is in 4 bit. Small updates are lost in bfloat16's
    8 bits, a T4 fails on it at the first step, and most CPUs multiply it a hundred times slower.
    """
    import torch

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
    import torch

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


def score_learnt_positions_only():
    """Let TRL project only the learnt tokens through the output layer on a CPU, as on a GPU.

    TRL 1.16 leaves the others out only where Triton runs; on a CPU it computes the logits of every
    prompt token, and throws them away. The loss and the gradients are the same either way.
    """
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True


def text_progress(trainer):
    """Replace the trainer's own progress display by one bar with the loss.

    Inside Jupyter, transformers draws an HTML table, which a terminal that runs the notebook cannot
    show.
    """
    import transformers
    from transformers.utils.notebook import NotebookProgressCallback

    class Bar(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            done = state.global_step  # more than 0 in a resumed run
            self.bar = tqdm(total=state.max_steps, initial=done, desc="Training", unit="step")

        def on_step_end(self, args, state, control, **_):
            self.bar.update(state.global_step - self.bar.n)

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

        def on_train_end(self, args, state, control, **_):
            self.bar.close()

    for other in (
        NotebookProgressCallback,
        transformers.ProgressCallback,
        transformers.PrinterCallback,
    ):
        trainer.remove_callback(other)
    trainer.add_callback(Bar)


def meter_one_step(trainer):
    """The most bytes that each phase of a training step takes: a dictionary, filled by `train()`.

    See `meter.Meter` for the phases. The second step is watched, as the optimizer has no states
    before the first; in a resumed run, its first. On a CPU that one step takes a little longer.
    """
    import transformers

    from qlora_kit.meter import Meter

    peaks = {}

    class Watch(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            self.watched, self.meter = max(1, state.global_step), None

        def on_step_begin(self, args, state, control, model, optimizer, **_):
            if state.global_step == self.watched:
                self.meter = Meter(model, optimizer.optimizer).__enter__()

        def on_step_end(self, args, state, control, **_):
            if self.meter:
                self.meter.__exit__(None, None, None)
                peaks.update(self.meter.peaks)
                self.meter = None

    trainer.add_callback(Watch())
    return peaks


def base_digest(model):
    """SHA-256 over every byte of the frozen base: packed weights, their constants, all the rest.

    Adapters are left out, so the digest is equal before and after training if and only if the
    base is.
    """
    import torch

    digest = hashlib.sha256()
    everything = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, base in sorted(everything.items()):
        if "lora_" in name:
            continue
        tensors = [base.data]
        state = getattr(base, "quant_state", None)
        while state is not None:  # with double quantisation the constants have constants
            tensors += [t for t in (state.absmax, state.code, state.offset) if t is not None]
            state = state.state2
        digest.update(name.encode())
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
