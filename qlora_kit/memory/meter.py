"""The meter: where the bytes of a real training step go, on the machine at hand.

On a GPU torch keeps the count; the meter reads it phase by phase. On a CPU nobody does, so the
tracker of the X-ray watches the real tensors, and tells categories besides.
"""

import torch

from qlora_kit.memory.machine import reset_peak
from qlora_kit.memory.moments import STATIC
from qlora_kit.memory.tracker import Tracker, decoder_of, watch

PHASES = ("forward", "loss", "backward", "step")


class Meter:
    """Watches training steps of `model` by `optimizer`: `with Meter(model, optimizer) as meter:`.

    `peaks` are the most bytes that were allocated in each phase of the steps inside: "forward" up
    to the last hidden states, "loss" with its own backward pass, "backward" through the layers, and
    "step" of the optimizer. "load" is what was there before. On a CPU `timeline` holds the bytes by
    category (the terms of `memory`) after each allocation and free; on a GPU it is empty.

    On a CPU torch's own threads and libraries are not counted, only tensors, rounded up to 512
    bytes as a GPU would.
    """

    def __init__(self, model, optimizer, checkpointing=False):
        self.model, self.optimizer, self.checkpointing = model, optimizer, checkpointing
        self.cuda = next(model.parameters()).is_cuda
        self.tracker = None if self.cuda else Tracker()
        self.peaks = {}
        self.phase = "load"
        self.start = 0
        self.handles = []

    @property
    def timeline(self):
        return [] if self.cuda else self.tracker.timeline

    @property
    def at_peak(self):
        """Bytes by category at the fullest moment (CPU only)."""
        return max(self.timeline, key=lambda moment: sum(moment.values()))

    @property
    def peak(self):
        """The most bytes that were allocated in any phase."""
        return max(self.peaks.values())

    def __enter__(self):
        if self.cuda:
            reset_peak()
        else:
            note_static(self.model, self.tracker)
            for state in self.optimizer.state.values():
                for value in state.values():
                    if torch.is_tensor(value):
                        self.tracker.note(value, "optimizer")
            self.handles += watch(self.model, self.tracker, self.checkpointing)
            self.tracker.__enter__()
        decoder = decoder_of(self.model)
        self.handles += [
            decoder.register_forward_pre_hook(lambda *_: self.enter("forward")),
            decoder.norm.register_forward_hook(self.out_of_decoder),
            self.optimizer.register_step_pre_hook(lambda *_: self.enter("step")),
            self.optimizer.register_step_post_hook(lambda *_: self.enter("between steps")),
        ]
        return self

    def __exit__(self, *_):
        # First what must not stay, whatever a broken step has left: the mode and the hooks.
        if not self.cuda:
            self.tracker.__exit__(None, None, None)
        for handle in self.handles:
            handle.remove()
        self.model = self.optimizer = None  # who keeps what was measured need not keep the model
        self.enter("after")

    def out_of_decoder(self, module, arguments, hidden):
        # A checkpoint's second forward pass does not come through here: only layers are repeated.
        self.enter("loss")
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.enter("backward"))

    def enter(self, phase):
        """Close the running phase with its peak and begin the next."""
        if self.phase in ("load", *PHASES):
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.highest())
        if self.cuda:
            reset_peak()
        else:
            self.start = max(len(self.timeline) - 1, 0)
            category = {"step": "optimizer", "loss": "logits and loss"}
            self.tracker.category = category.get(phase, "layer activations")
        self.phase = phase

    def highest(self):
        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        return max(sum(moment.values()) for moment in self.timeline[self.start :])


def storages(model):
    """(tensor, term) for every storage that a model holds: packed weights, constants, and the rest.

    A bitsandbytes 4-bit weight keeps its constants beside it: the scales of its blocks, with double
    quantisation the scales of these and an offset, and a code table for each. An 8-bit weight keeps
    a scale for each row; its layer takes that away from it at the first forward pass.
    """
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        row_scales = getattr(parameter, "SCB", None)
        if row_scales is not None:
            yield row_scales, "quantisation constants"
        if state is not None or row_scales is not None:
            yield parameter, "quantised weights"
        elif "lora_" in name:
            yield parameter, "adapter"
        else:
            yield parameter, "unquantised weights"
        while state is not None:
            for constant in (state.absmax, state.code, state.offset):
                if constant is not None:
                    yield constant, "quantisation constants"
            state = state.state2
    for buffer in model.buffers():
        yield buffer, "unquantised weights"


def note_static(model, tracker):
    for tensor, term in storages(model):
        tracker.note(tensor, term)


def static_bytes(model):
    """Bytes by term of what a model holds, each storage counted once and not rounded."""
    seen, totals = set(), dict.fromkeys(STATIC, 0)
    for tensor, term in storages(model):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            totals[term] += storage.nbytes()
    return totals
