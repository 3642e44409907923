"""The kit's own code against the library's, timed in turns within one run.

Seconds say little on a busy machine. The ratio of two medians, taken in turns, holds there too.
"""

import statistics
import time

import bitsandbytes.functional as library
import torch

from qlora_kit import nf4


def bench_nf4(size=4096, repetitions=7):
    """Quantise and dequantise a float32 weight [size, size] in blocks of 64.

    Returns the median seconds of both sides, and bitsandbytes' over the kit's as ratios: above 1
    the kit is the faster one.
    """
    weight = torch.randn(size, size)
    ours = nf4.quantize(weight)
    theirs = library.quantize_4bit(weight, quant_type="nf4")
    quantize, library_quantize = medians(
        lambda: nf4.quantize(weight),
        lambda: library.quantize_4bit(weight, quant_type="nf4"),
        repetitions,
    )
    dequantize, library_dequantize = medians(
        ours.dequantize, lambda: library.dequantize_4bit(*theirs), repetitions
    )
    return {
        "quantize_ratio": library_quantize / quantize,
        "dequantize_ratio": library_dequantize / dequantize,
        "quantize_seconds": quantize,
        "library_quantize_seconds": library_quantize,
        "dequantize_seconds": dequantize,
        "library_dequantize_seconds": library_dequantize,
    }


def medians(ours, theirs, repetitions):
    """Median seconds of two functions that are called in turns, after one call that warms up."""
    seconds = {ours: [], theirs: []}
    for _ in range(repetitions + 1):
        for function, times in seconds.items():
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds.values()]
