"""Where the bytes go: measurement."""


def peak_bytes():
    """The most memory used so far, in bytes: of the GPU if there is one, else of this process."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if psutil.MACOS else peak * 1024  # Linux counts in KiB, macOS in bytes
