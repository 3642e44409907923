"""From the peak of what is allocated to what a GPU must have: torch's pool of blocks has gaps."""

# What was measured over the peak allocated, by source: the least, the middle, the most.
SOURCES = {
    # torch's max_memory_reserved: data/measured_t4.csv, 47 steps.
    "T4": (1.04, 1.12, 1.42),
    # nvidia-smi's total, with CUDA's context: data/measured_a100.csv, 17 trainings on one GPU.
    "A100-80": (1.06, 1.17, 1.47),
}
# The least of all, the mean of the first four rows on T4s, which decides, and the most of all.
RESERVED = (1.04, 1.14, 1.47)
# The same over what the pool of the X-ray took, for LoRA and QLoRA: 13 rows on T4s are 0.98 to
# 1.05, four trainings on an A100 1.01 to 1.08. For full fine-tuning that pool is 1.1 to 1.3 times
# too large, since it never returns a block.
REPLAYED = (0.98, 1.03, 1.08)


class Needed(int):
    """Bytes that a GPU must have, with the `least` and the `most` that are to be expected."""

    def __new__(cls, least, middle, most):
        self = super().__new__(cls, middle)
        self.least, self.most = int(least), int(most)
        return self


def needed(peak_allocated, gpu, replayed=None):
    """The Needed bytes: the peak, the gaps to be expected, CUDA's own context.

    replayed: what the X-ray's own pool reserved, for LoRA and QLoRA; it narrows the range.
    """
    pool, shares = (replayed, REPLAYED) if replayed else (peak_allocated, RESERVED)
    return Needed(*(int(share * pool) + gpu.context for share in shares))


def fits(peak_allocated, gpu, replayed=None):
    """True if a step with that peak is expected to run on the GPU."""
    return needed(peak_allocated, gpu, replayed) <= gpu.total


def verdict(peak_allocated, gpu, replayed=None):
    """The same in words that say how sure it is: "fits", or what depends on the pool's gaps."""
    bytes_ = needed(peak_allocated, gpu, replayed)
    if bytes_ <= gpu.total:
        return "fits" if bytes_.most <= gpu.total else "probably fits"
    return "probably does not fit" if bytes_.least <= gpu.total else "does not fit"
