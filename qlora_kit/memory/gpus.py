"""GPUs that people have, and the one at hand: how much memory each has, and what it takes of it."""

from dataclasses import dataclass

from qlora_kit.errors import KitError

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Gpu:
    """A device. `total` and `context` in bytes: what torch reports as its memory, and what CUDA
    keeps for itself. `flash`: it has flash attention, and bfloat16 in place of float16 (compute
    capability 8.0 on).

    `workspace` is what cuBLAS takes from torch's pool: 4,096 KiB twice and 16 KiB eight times
    (32 MiB from compute capability 9.0 on; aten/src/ATen/cuda/CublasHandlePool.cpp), once for the
    forward thread and once for autograd's.
    """

    name: str
    total: int
    context: int = 450 * MIB
    flash: bool = True
    workspace: int = 2 * (2 * 4096 + 8 * 16) * 1024


# The totals are torch.cuda.get_device_properties().total_memory, the lowest of some public logs
# ("total capacity of" in reports of CUDA out of memory): drivers move it by a per cent. The T4's
# two figures are measured (Anassbzdd/fitcheck on GitHub, data/measurements, 2026-09-15); the
# others' contexts are a rough half of a GiB.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("T4", 14912 * MIB, context=int(140.875 * MIB), flash=False),
        Gpu("L4", int(22.16 * GIB)),
        Gpu("A10G", int(22.03 * GIB)),
        Gpu("RTX3090", int(23.68 * GIB)),
        Gpu("RTX4090", int(23.51 * GIB)),
        Gpu("RTX5090", 33_677_180_928, workspace=2 * 32 * MIB),
        Gpu("L40S", int(44.39 * GIB)),
        Gpu("A6000", int(47.4 * GIB)),
        Gpu("A100-40", int(39.38 * GIB)),
        Gpu("A100-80", int(79.14 * GIB)),
        Gpu("H100", int(79.1 * GIB), workspace=2 * 32 * MIB),
        Gpu("H200", int(139.72 * GIB), workspace=2 * 32 * MIB),
    )
}


def find_gpu(name):
    """A Gpu by its name in any case, or one of so many GiB: "T4", "rtx 4090", "48"."""
    key = str(name).upper().replace(" ", "").replace("_", "-")
    for known in GPUS:
        if key == known.upper():
            return GPUS[known]
    try:
        size = float(key.removesuffix("GIB"))
    except ValueError:
        size = 0
    if not 0 < size < 10_000:  # also refuses nan
        raise KitError(
            f"There is no GPU {str(name)!r} here; choose one of {', '.join(GPUS)}, or give its "
            "memory in GiB, such as --gpu 48."
        )
    return Gpu(f"{size:g} GiB", int(size * GIB))


def this_machine():
    """The Gpu at hand, as torch sees it; without one, this machine's memory and none of CUDA's."""
    import psutil
    import torch  # here, so that a budget needs neither

    from qlora_kit.cuda import usable_cuda

    if not usable_cuda():
        return Gpu("this CPU", psutil.virtual_memory().total, context=0, flash=False, workspace=0)
    capability = torch.cuda.get_device_capability()
    return Gpu(
        torch.cuda.get_device_name(),
        torch.cuda.get_device_properties().total_memory,
        flash=capability >= (8, 0),
        workspace=(GPUS["H100"] if capability >= (9, 0) else GPUS["T4"]).workspace,
    )
