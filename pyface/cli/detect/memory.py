"""How a command uses the memory of its process."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's options, of malloc.h
_KEPT_BYTES = 2**29


def keep_freed_memory() -> None:
    """Lets glibc keep half a gigabyte of freed memory for the next batch, instead of giving it back to the system.

    Every batch frees hundreds of megabytes of feature maps and frames, and takes as much again. Page faults on memory
    that was given back meanwhile can take a quarter of the time of a run. Other C libraries have no such option.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (TRIM_THRESHOLD, MMAP_THRESHOLD):
            mallopt(option, _KEPT_BYTES)
