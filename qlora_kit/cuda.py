"""Whether this machine's GPU can be used: torch must hold code for its architecture."""

import torch


def usable_cuda():
    """Whether there is a GPU that the installed torch has code for.

    `torch.cuda.is_available()` asks for a GPU and a driver alone. Each build of torch holds code
    for some architectures; on a GPU of another one, such as a GTX 1080, every kernel raises.
    """
    return torch.cuda.is_available() and has_code_for(torch.cuda.get_device_capability())


def has_code_for(capability):
    """Whether torch has code for a GPU of this compute capability, such as (7, 5).

    sm_86 is machine code for 8.6. It runs on later GPUs of the same major version as well, sm_90a
    on 9.0 alone. compute_90 is an intermediate form (PTX), which the driver compiles for any later
    GPU. A build that names no such architecture (AMD's) is taken at its word. (CUDA C++ Programming
    Guide, sections "Binary compatibility" and "PTX compatibility"; torch warns by the same rules.)
    """
    named = [entry.split("_") for entry in torch.cuda.get_arch_list() if "_" in entry]
    return not named or any(_runs(kind, version, capability) for kind, version in named)


def _runs(kind, version, capability):
    digits = version.rstrip("af")  # a: this architecture alone; f: its family
    of_code = int(digits[:-1]), int(digits[-1])
    if version.endswith("a"):
        return capability == of_code
    return of_code <= capability and (kind == "compute" or capability[0] == of_code[0])
