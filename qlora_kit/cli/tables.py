"""The tables that commands print."""

import math


def before_and_after(report):
    """The table that `train` ends with."""
    before, after = report["before"], report["after"]
    lines = [f"{before['rows']} held-out tickets      before   after"]
    for key, name in (
        ("category_accuracy", "category right"),
        ("exact_match", "and priority right"),
        ("stops_by_itself", "stops by itself"),
        ("facts_right", "policy facts right"),
        ("facts_false", "replies partly false"),
        ("facts_evasive", "left to a colleague"),
    ):
        if key in after:  # tickets of one's own may have no checklist of facts
            lines.append(f"{name:<24}{before[key]:>8.1%}{after[key]:>8.1%}")
    perplexity = f"{before['perplexity']:>8.2f}{after['perplexity']:>8.2f}"
    lines.append(f"{'perplexity of answers':<24}{perplexity}")
    lines.append(
        f"{report['trainable_parameters']:,} of {report['total_parameters']:,} parameters trained "
        f"in {report['train_seconds']:.0f} s, {report['tokens_per_second']:.0f} tokens a second, "
        f"peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB, "
        f"adapter {report['adapter_bytes'] / 1e6:.1f} MB."
    )
    return "\n".join(lines)


def path(stages, free, model):
    """What each notebook takes, below the doctor's findings. `free` is this machine's, in bytes."""
    lines = [f"What the notebooks take on two CPU cores ({free / 1e9:.1f} GB of memory free here):"]
    for stage in stages:
        measured = not math.isnan(stage.minutes)
        minutes = f"{stage.minutes:>9g} min" if measured else f"{'longer':>13}"
        size = f"{'' if measured else '> '}{stage.gigabytes:g} GB"
        fits = "fits" if stage.gigabytes * 1e9 <= free else "needs more than is free"
        name = f"{stage.number} {stage.title}"
        lines.append(f"  {name:<26}{minutes}{size:>11}  {fits}")
        if not measured:
            lines[-1] += f", with {model}"
    return "\n".join(lines)


def speeds(result):
    """The table that `bench nf4` prints."""
    lines = ["4096 x 4096 float32, CPU    kit, s  bitsandbytes, s  speed of the kit"]
    for key in ("quantize", "dequantize"):
        kit, library = result[f"{key}_seconds"], result[f"library_{key}_seconds"]
        lines.append(f"{key:<26}{kit:>8.3f}{library:>17.3f}{result[f'{key}_ratio']:>17.2f}x")
    return "\n".join(lines)


def training_speeds(result):
    """The table that `bench train` prints."""
    runs = result["runs"]
    kit = runs["kit"]
    lines = [f"{'':<35}tokens a second  seconds  peak memory  held-out loss"]
    for run in runs.values():
        lines.append(
            f"{run['name']:<35}{run['tokens_per_second']:>15.0f}{run['seconds']:>9.1f}"
            f"{run['peak_memory_bytes'] / 1e9:>10.2f} GB{run['heldout_loss']:>15.3f}"
        )
    lines += [
        f"Each: {kit['steps']} steps over {kit['tokens']:,} tokens, padding not counted; "
        f"{kit['learnt']:,} of them are learnt.",
        f"The kit's recipe is {result['ratio']:.2f} times as fast as the libraries' defaults, and "
        f"{result['qlora_over_lora']:.2f} times as fast on 4 bits as on the unquantised base.",
        f"Matrix products fill {result['matmul_share']:.0%} of its time at the best rate of this "
        f"machine, {kit['product_rate'] / 1e9:.0f} GFLOP/s in {kit['products_in']} "
        f"on {kit['threads']} threads.",
    ]
    if not result["steady"]:
        rounds = len(kit["seconds_of_all_rounds"])
        lines.append(
            f"The ratio is not steady yet (rounds: {rounds}): other programs are at work. Close "
            "them, and run it again."
        )
    return "\n".join(lines)
