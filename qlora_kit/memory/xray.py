"""An X-ray of one training step: every storage of the real model, without a GPU or any weights.

The model is built by transformers, PEFT and bitsandbytes as for a real run, but of fake tensors,
which have a shape and a dtype and no data (torch's meta device). One step runs through it while a
dispatch mode notes each storage that comes and goes. Replayed through the rules of CUDA's caching
allocator, the trace gives what `torch.cuda.max_memory_allocated` would say.
"""

from dataclasses import dataclass

import torch

from qlora_kit import compat
from qlora_kit.errors import KitError
from qlora_kit.memory import allocator, internals
from qlora_kit.memory.fake_model import build, fill, make_optimizer, make_states
from qlora_kit.memory.gpus import MIB
from qlora_kit.memory.like_cuda import as_on_a_gpu, autocast
from qlora_kit.memory.moments import TERMS
from qlora_kit.memory.tracker import Tracker, decoder_of, watch


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
        """The terms of a budget at the fullest moment, with the allocator's gaps as one more.

        They add up to `peak_allocated`.
        """
        terms = {name: self.at_peak.get(name, 0) for name in TERMS}
        return terms | {"gaps in blocks": self.peak_allocated - self.peak}

    @property
    def static(self):
        """Bytes that are there before the step begins: weights, adapter, optimizer, workspace."""
        return sum(self.timeline[0].values())


def trace(architecture, setup, gpu):
    """Run a fake training step, with the optimizer's states there already; return its XRay.

    architecture: an Architecture; setup: a `memory.Setup`; gpu: a `memory.Gpu`.
    Raises KitError for an architecture that transformers cannot build or that has no decoder of
    the usual form (`layers`, then a `norm`).
    """
    internals.check()
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
            enable = getattr(model, f"{compat.CHECKPOINTING}_enable")
            enable({"use_reentrant": False, "preserve_rng_state": False})
            model.enable_input_require_grads()
        watch(model, tracker, setup.checkpointing)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_optimizer(trainable, setup, tracker)
        with tracker:
            ids = torch.ones(setup.batch, setup.seq, dtype=torch.long)
            tracker.take(gpu.workspace, "workspace")
            if setup.ddp:
                for size in buckets(trainable):
                    tracker.take(size, "gradients")
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


def buckets(parameters):
    """Bytes of the buckets in which DistributedDataParallel gathers gradients to send them.

    They hold a copy of every gradient: 1 MiB in the first, then 25 MiB (bucket_cap_mb) or one
    larger parameter, from the last parameter on (torch 2.13, nn/parallel/distributed.py).
    """
    sizes, limit = [0], MIB
    for parameter in reversed(parameters):
        sizes[-1] += parameter.numel() * parameter.element_size()
        if sizes[-1] >= limit:
            sizes, limit = [*sizes, 0], 25 * MIB
    return [allocator.rounded(size) for size in sizes if size]


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
