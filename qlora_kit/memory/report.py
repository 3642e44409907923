"""A budget in words: the table of its terms, and what helps a step that does not fit."""

from dataclasses import replace

from qlora_kit.memory.formulas import budget
from qlora_kit.memory.gpus import GIB, GPUS, MIB
from qlora_kit.memory.reserved import needed, verdict


def changes(setup):
    """What may be changed to need less: {what to do: the changed Setup}, the gentlest first."""
    candidates = {
        "the tiled loss (SFTTrainer's)": {"loss": "tiled", "keep_outputs": False},
        "activation checkpointing": {"checkpointing": True},
        "sdpa attention": {"attention": "sdpa"},
        "double quantisation": {"double_quant": True},
        "a 4-bit base (qlora)": {"method": "qlora"},
        "an 8-bit paged optimizer": {"optimizer": "paged_adamw_8bit"},
        "a batch of 1, accumulated": {"batch": 1},
        "half the sequence": {"seq": max(1, setup.seq // 2)},
    }
    changed = {what: replace(setup, **values) for what, values in candidates.items()}
    return {what: other for what, other in changed.items() if other != setup}


def advice(architecture, setup, gpu):
    """Lines that say what helps a step that does not fit: each change alone, all, another GPU."""

    def outcome(other):
        peak = budget(architecture, other, gpu).peak_allocated
        return peak, f"{peak / GIB:.2f} GiB, {verdict(peak, gpu)}"

    lines = []
    now, _ = outcome(setup)
    helpful = {}
    for what, other in changes(setup).items():
        peak, text = outcome(other)
        if peak < now:
            lines.append(f"  with {what}: {text}")
            helpful |= {
                name: value for name, value in vars(other).items() if value != getattr(setup, name)
            }
    if len(lines) > 1:
        lines.append(f"  with all of these: {outcome(replace(setup, **helpful))[1]}")
    larger = [
        known.name
        for known in sorted(GPUS.values(), key=lambda known: known.total)
        if budget(architecture, setup, known).fits
    ]
    lines.append(f"  as it is, it fits: {', '.join(larger) or 'none of the GPUs known here'}")
    return lines


def table(title, terms, peak_reserved, gpu, replayed=None):
    """The lines that `budget` prints: every term at the fullest moment, their sum, the verdict.

    replayed: as in `needed`.
    """
    peak = sum(terms.values())
    lines = [title, ""]
    for name, size in terms.items():
        lines.append(f"  {name:<24}{size / MIB:>12,.1f} MiB")
    lines.append(f"  {'peak allocated':<24}{peak / MIB:>12,.1f} MiB")
    reserved = " to ".join(f"{size / MIB:,.0f}" for size in peak_reserved)
    lines.append(f"  {'peak reserved':<24}{reserved:>12} MiB")
    lines.append(f"  {'CUDA context':<24}{gpu.context / MIB:>12,.1f} MiB")
    total = needed(peak, gpu, replayed)
    lines.append("")
    lines.append(
        f"It {verdict(peak, gpu, replayed)} on {gpu.name}: about {total / GIB:.2f} GiB are needed "
        f"({total.least / GIB:.2f} to {total.most / GIB:.2f}, as the pool's gaps fall) and "
        f"{gpu.total / GIB:.2f} GiB are there."
    )
    return lines
