"""Findings about this machine."""

import importlib.metadata
import math
import os
import platform
import shutil
import sys

from packaging.requirements import Requirement
from packaging.version import Version

from qlora_kit import bootstrap, colab, course
from qlora_kit.doctor import weights
from qlora_kit.doctor.findings import error, ok, warning

# Besides the kit's own requirements, what an installation on Colab replaces.
MOVED = ("numpy", "pyarrow", "fsspec", "huggingface_hub", "tokenizers", "safetensors")
RUN_BYTES = 300_000_000  # a run's folder at its fullest: two checkpoints and the adapter


def machine():
    """Every finding about this machine: an OK line a subject where all is well.

    Where packages are missing or stale the rest is left out, since it could not be imported.
    """
    found = [_python(), *_packages(), *_torchao(), *_stale()]
    if any(finding.level == "error" for finding in found):
        return found
    from qlora_kit import models

    profile, dtypes = models.pick_profile(), models.pick_dtypes()
    found += [*_device(), *_formats(dtypes), *_memory(profile, dtypes)]
    return [*found, *_disk(profile), *weights.cached(profile), *weights.hub(profile)]


def _python():
    # The package itself refuses an older Python.
    return ok(f"Python {platform.python_version()} on {platform.system()}")


def _packages():
    lacking = bootstrap.missing([])
    if lacking:
        quoted = " ".join(f'"{text}"' for text in lacking)
        yield error(
            f"packages are missing, or of another version: {', '.join(lacking)}",
            "The notebooks were tested with these; others stop them with an error, or change "
            "results without one.",
            f"python3 -m pip install {quoted}, then restart the kernel (on Colab: run the set-up "
            "cell, then Runtime, Restart session)",
        )
    else:
        count = len(bootstrap.requirements([]))
        yield ok(f"packages: all {count} are there, in versions that fit")


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torchao():
    if colab.old_torchao():
        yield warning(
            f"torchao {_version('torchao')} is too old for peft",
            "peft raises ImportError when an adapter is put on an unquantised base, as for a "
            "merge. The kit does not use torchao.",
            "python3 -m pip uninstall torchao, then restart the kernel",
        )


def _stale():
    """Packages that this process imported before another version was installed over them."""
    names = {Requirement(text).name for text in bootstrap.requirements([])} | set(MOVED)
    stale = []
    for name in sorted(names):
        module = "sklearn" if name == "scikit-learn" else name
        loaded = getattr(sys.modules.get(module), "__version__", None)
        installed = _version(name)
        if loaded and installed and Version(str(loaded)).public != Version(installed).public:
            stale.append(f"{name} {loaded} (installed: {installed})")
    if stale:
        yield error(
            f"this process still runs an old {', '.join(stale)}",
            "It was imported before the installation. Old and new code do not go together.",
            "restart the kernel and run all cells (on Colab: Runtime, Restart session)",
        )


def _device():
    import torch

    from qlora_kit.cuda import usable_cuda

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
    import torch

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


def _formats(dtypes):
    """The dtypes that were chosen, against what this device has in its hardware and does fast."""
    import torch

    from qlora_kit import models

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


def _memory(profile, dtypes):
    if dtypes.device == "cuda":
        yield from _gpu_memory(profile, dtypes)
        return
    from qlora_kit import memory

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
    from qlora_kit import models

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
    from qlora_kit import memory
    from qlora_kit.memory import architectures

    step = setup(profile.recipe, dtypes)
    return memory.budget(architectures.find(profile), step, memory.this_machine()).peak_allocated


def _gpu_memory(profile, dtypes):
    """What a training step of notebook 06 needs, the pool's gaps included, against what is free.

    CUDA's context is there already: asking for the free memory has made it.
    """
    import torch

    from qlora_kit import memory
    from qlora_kit.memory import architectures

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
    import torch

    from qlora_kit import memory

    return memory.Setup(
        batch=recipe.batch,
        seq=recipe.max_length,
        rank=recipe.rank,
        dropout=recipe.dropout,
        optimizer=recipe.optimizer,
        checkpointing=recipe.checkpointing,
        prepare_kbit=dtypes.model == torch.float32,
        compute_dtype="float32" if dtypes.compute == torch.float32 else "bfloat16",
        autocast=False,
    )


def _disk(profile):
    from qlora_kit import fetch, models

    needed = RUN_BYTES
    if not models.cached(profile):
        needed += profile.embedded.disk_bytes if profile.embedded else _hub_bytes(profile)
    free = shutil.disk_usage(fetch.cache_dir()).free
    if free < needed:
        yield error(
            f"disk: {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed",
            "A download or a checkpoint that does not fit is cut off.",
            "make room, or set QLORA_KIT_CACHE (and HF_HOME, for models of the hub) to a folder on "
            "another disk",
        )
    else:
        yield ok(f"disk: {free / 1e9:.1f} GB free")


def _hub_bytes(profile):
    """The size of a model on the hub: two bytes a parameter."""
    from qlora_kit.memory import architectures

    architecture = architectures.find(profile)
    return 2 * (architecture.linear_parameters() + architecture.other_parameters())
