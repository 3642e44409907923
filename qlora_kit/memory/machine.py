"""What this process has used of the machine's memory, and what it may still take."""

import os
import re
from pathlib import Path

earlier = 0  # the GPU's peak before the meter last set torch's counter back
CGROUP = Path("/sys/fs/cgroup")  # where Linux tells a container its limits


def peak_bytes():
    """The most memory used so far, in bytes: of the GPU if there is one, else of this process."""
    import psutil  # here, so that a budget needs the standard library alone
    import torch

    from qlora_kit.cuda import usable_cuda

    if usable_cuda():
        return max(earlier, torch.cuda.max_memory_allocated())
    if psutil.WINDOWS:
        return psutil.Process().memory_info().peak_wset
    if psutil.LINUX:  # not ru_maxrss, in which a child begins with the peak of its parent
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak():
    """Let torch count the GPU's peak anew; `peak_bytes` remembers what it was."""
    import torch

    global earlier
    earlier = max(earlier, torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()


def free_bytes():
    """How many bytes of memory this process may still take: what the machine has left, or less.

    Less in a container whose limit is nearer: that of its control group (cgroup v2), or the one
    that Binder and other JupyterHubs note in MEM_LIMIT.
    """
    import psutil

    left = [psutil.virtual_memory().available]
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        files = int(re.search(r"inactive_file (\d+)", (CGROUP / "memory.stat").read_text())[1])
    except (OSError, TypeError, ValueError):
        pass  # no control group, or another kind
    else:
        if limit != "max":
            left.append(int(limit) - used + files)  # a file's copy in memory makes room when asked
    if os.environ.get("MEM_LIMIT", "").isdigit():
        left.append(int(os.environ["MEM_LIMIT"]) - psutil.Process().memory_info().rss)
    return max(0, min(left))
