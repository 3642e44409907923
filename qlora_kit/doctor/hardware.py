"""Findings about the processors and the memory of this machine."""

import math
import os
import shutil

import torch

from qlora_kit import course, memory, models
from qlora_kit.cuda import usable_cuda
from qlora_kit.doctor.findings import error, ok, warning
from qlora_kit.memory import architectures


def device():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available() and not usable_cuda():
        yield from _unusable()
    elif torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        name = f"{torch.cuda.get_device_name()}, {total / 2**30:.1f} GiB"
        yield ok(f"GPU: {name}, beside {cores} CPU cores")
    elif shutil.which("nvidia-smi"):
        yield warning(
            "there is an NVIDIA driver, but PyTorch sees no GPU",
            "Everything runs on the CPU, many times slower than it could.",
            "install the build of PyTorch that pytorch.org names for your driver (on Colab: "
            "Runtime, Change runtime type, T4 GPU)",
        )
    else:
        yield ok(f"no GPU, and none is needed: {cores} CPU cores")


def _unusable():
    """About a GPU for whose architecture the installed torch was not built."""
    capability = torch.cuda.get_device_capability()
    yield warning(
        f"GPU: {torch.cuda.get_device_name()} has compute capability {capability[0]}."
        f"{capability[1]}, and this torch has no kernels for it",
        f"It was built for {', '.join(torch.cuda.get_arch_list())}. Everything runs on the CPU, as "
        "if there were no GPU.",
        # CUDA 12.6 is the last whose compiler knows GPUs before the T4.
        "python3 -m pip install --force-reinstall torch --index-url "
        "https://download.pytorch.org/whl/cu126, then restart the kernel"
        if capability < (7, 5)
        else "install the newest torch as pytorch.org says, then restart the kernel",
    )


def formats(dtypes):
    """The dtypes that were chosen, against what this device has in its hardware and does fast."""
    types = [torch.float32, torch.bfloat16] + [torch.float16] * (dtypes.device == "cuda")
    seconds = {dtype: models.seconds_of_a_product(dtype, dtypes.device) for dtype in types}
    fastest = min(seconds, key=seconds.get)
    slower = seconds[dtypes.compute] / seconds[fastest]
    bfloat16 = seconds[torch.bfloat16] / seconds[torch.float32]
    model, compute, fastest = map(_name, (dtypes.model, dtypes.compute, fastest))
    emulates = dtypes.device == "cuda" and torch.cuda.get_device_capability() < (8, 0)
    fix = "take the dtypes of models.pick_dtypes()"
    if model == "float16":
        yield error(
            "float16 between the layers",
            "Gemma's activations go above 65,504, where float16 ends: the loss becomes nan.",
            fix,
        )
    elif emulates and "bfloat16" in (model, compute):
        yield warning(
            f"this GPU only emulates bfloat16: {bfloat16:.1f} times the time of float32",
            "Before compute capability 8.0 there is no bfloat16 in the hardware, although "
            "torch.cuda.is_bf16_supported() says yes.",
            fix,
        )
    elif slower > 2:
        yield warning(
            f"{compute} products take {slower:.1f} times as long as {fastest}",
            "Most of a training step is such products.",
            fix,
        )
    else:
        yield ok(
            f"number formats: {model} between layers, {compute} for products; here bfloat16 takes "
            f"{bfloat16:.2g} times the time of float32"
        )


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def free_memory(profile, dtypes):
    if dtypes.device == "cuda":
        yield from _gpu_memory(profile, dtypes)
        return
    free = memory.free_bytes()
    large = [stage.number for stage in stages(profile, dtypes) if stage.gigabytes * 1e9 > free]
    if large:
        yield warning(
            f"memory: {free / 1e9:.1f} GB free, less than notebook {', '.join(large)} takes",
            "The system ends a process that takes more than there is, or becomes very slow.",
            "close other programs and other notebooks; each open one keeps its memory",
        )
    else:
        yield ok(f"memory: {free / 1e9:.1f} GB free, enough for every notebook")


def stages(profile, dtypes):
    """`course.STAGES` as this model makes them on this machine.

    A larger model than the one that they were measured with makes notebook 06 take more memory on
    a CPU: at least as much more as its training step does by the formulas. How many minutes it
    takes is not known: nan.
    """
    more = _step_bytes(profile, dtypes) - _step_bytes(models.PROFILES["smollm2-135m"], dtypes)
    if dtypes.device == "cuda" or more <= 0:
        return course.STAGES
    return tuple(
        stage._replace(gigabytes=round(stage.gigabytes + more / 1e9, 1), minutes=math.nan)
        if stage.number == "06"
        else stage
        for stage in course.STAGES
    )


def _step_bytes(profile, dtypes):
    step = setup(profile.recipe, dtypes)
    return memory.budget(architectures.find(profile), step, memory.this_machine()).peak_allocated


def _gpu_memory(profile, dtypes):
    """What a training step of notebook 06 needs, the pool's gaps included, against what is free.

    CUDA's context is there already: asking for the free memory has made it.
    """
    architecture, step = architectures.find(profile), setup(profile.recipe, dtypes)
    gpu = memory.this_machine()
    needed = memory.needed(memory.budget(architecture, step, gpu).peak_allocated, gpu) - gpu.context
    free = torch.cuda.mem_get_info()[0]
    text = f"{free / 2**30:.1f} GiB free, and a step with {profile.name} takes {needed / 2**30:.1f}"
    if needed > free:
        yield warning(
            f"GPU memory: {text}",
            "Training will end with CUDA out of memory.",
            "shut down other notebooks and programs on this GPU, or choose a smaller model with "
            "QLORA_KIT_PROFILE",
        )
    else:
        yield ok(f"GPU memory: {text}")


def setup(recipe, dtypes):
    """The training step of notebook 06, for the formulas of `memory`."""
    return memory.Setup(
        batch=recipe.batch,
        seq=recipe.max_length,
        rank=recipe.rank,
        targets=recipe.targets,
        dropout=recipe.dropout,
        optimizer=recipe.optimizer,
        checkpointing=recipe.checkpointing,
        prepare_kbit=dtypes.model == torch.float32,
        compute_dtype="float32" if dtypes.compute == torch.float32 else "bfloat16",
        autocast=False,
    )
