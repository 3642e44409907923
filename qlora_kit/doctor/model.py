"""Findings about a model and its adapter: before training, after a first step, after a merge."""

import math

from qlora_kit.doctor.findings import error

LOST = 0.2  # the share of an adapter's effect that a merge may lose; bfloat16 loses some hundredths


def model(model):
    """Findings about a model with its adapter, before training."""
    from qlora_kit.doctor import base, coverage, trained  # not before: these want all packages

    found = [*coverage.wrapping(model)]
    if not found:
        found = [*trained.findings(model), *coverage.findings(model)]
    return [*found, *base.findings(model)]


def first_step(model, loss):
    """Findings after one backward pass: the loss, and the gradient of each B.

    A's gradient is zero in a fresh adapter, since B is: that is as it should be.
    """
    import torch

    return [*loss_findings(torch.as_tensor(loss).item()), *_gradients(model)]


def loss_findings(loss):
    if not math.isfinite(loss):
        yield error(
            f"the loss is {loss}",
            "Numbers above 65,504 do not fit into float16, and Gemma has some; or no label of the "
            "batch was to be learnt.",
            "take the dtypes of models.pick_dtypes(), and look at the batch",
        )


def _gradients(model):
    from qlora_kit.doctor import layers, trained

    pairs = list(layers.factors(model))
    if not pairs:
        yield trained.no_adapter()
    without = [(a, b) for a, b in pairs if not has_gradient(b[1])]
    if without:
        yield no_gradient(without, len(pairs))
    broken = sum(b.grad is not None and not b.grad.isfinite().all() for _, (_, b) in pairs)
    if broken:
        yield broken_gradient(broken, len(pairs))


def has_gradient(parameter):
    return parameter.grad is not None and bool(parameter.grad.any())


def no_gradient(without, count):
    """without: those of `layers.factors` whose second has none."""
    (_, a), (name, b) = without[0]
    if not b.requires_grad:
        why = f"{name} is frozen."
        fix = f"model.get_parameter({name!r}).requires_grad_(True)"
    elif not a.any():
        why = f"{name} and its partner are both zero: neither can move."
        fix = "put the adapter on anew, with LoraConfig(init_lora_weights=True), its default"
    elif len(without) == count:
        why = "There was no backward pass, or the loss does not reach the adapter."
        fix = "loss.backward() first; with checkpointing, model.enable_input_require_grads() before"
    else:
        why = f"Checkpointing cuts the gradient on its way to {name}, or the answer does without."
        fix = (
            "model.enable_input_require_grads() before training; or leave out modules that take "
            "no part, such as a tower for images, with LoraConfig(exclude_modules=...)"
        )
    return error(
        f"{len(without)} of {count} B matrices got no gradient",
        f"What gets none does not learn. {why}",
        fix,
    )


def broken_gradient(broken, count):
    return error(
        f"{broken} of {count} B matrices got a gradient with infinities or no numbers",
        "One such step makes every weight of the adapter useless.",
        "take the dtypes of models.pick_dtypes()",
    )


def merge(beside, merged, base):
    """Findings about a merge, from logits for the same tokens, all of one shape.

    beside: of the base with its adapter; merged: of the merged model; base: without the adapter.
    """
    effect, wrong = (beside - base).norm().item(), (merged - beside).norm().item()
    if wrong <= LOST * effect:
        return []
    return [  # also where it is nan
        error(
            f"the merged model is off by {wrong:.2g}, and the adapter moved it by {effect:.2g}",
            "A merge into 4-bit weights rounds the sum to the nearest of 16 levels, and small "
            "updates vanish; a merge into a table that is embedding and output layer changes both.",
            "load the base in 16 or 32 bits, put the adapter on it, and merge there; leave "
            "embedding and output layer out of target_modules",
        )
    ]
