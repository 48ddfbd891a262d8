"""The cores and the memory that detectors use.

A detector uses no more threads than the cores that this process may use and that others leave free. OpenMP's threads
wait for each other by spinning. When other processes need the cores, this multiplies the CPU time per image without
making it faster.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

_INTERVAL = 0.25  # seconds; the kernel counts hundredths of a second, too coarse for shorter intervals

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's options, of malloc.h
_KEPT_BYTES = 2**29

_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def is_forked() -> bool:
    """Whether this process was forked from one that had loaded pyface.

    OpenMP's threads do not exist in such a process, and waiting for them would never end.
    """
    return _is_forked


def own_cores() -> int:
    """Number of cores that this process may use: those it is bound to, and no more than its container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(bound, _quota(Path("/"))) + 0.5))


def _quota(root: Path) -> float:
    """The smallest CPU quota of the cgroups that this process is in, in cores; infinite if there is none."""
    quotas = [math.inf]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers  # cgroup v2 has no controllers here
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            quota, period = (*_read(folder / "cpu.max").split(), "", "")[:2]
            if controllers:
                quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            with contextlib.suppress(ValueError, ZeroDivisionError):
                if int(quota) > 0:  # -1 and "max" mean no limit
                    quotas.append(int(quota) / int(period))
            if folder == mount:
                break
    return min(quotas)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


class FreeCores:
    """Estimates how many cores other processes leave free, from the CPU time that they have used recently."""

    def __init__(self) -> None:
        self.cores = os.cpu_count() or 1
        self._free = self.cores
        self._last = self._used()

    def __call__(self) -> int:
        """The number of cores, at least 1; all of them where the system does not report their use."""
        if self._last is None:
            return self.cores
        now = self._used()
        if now is None:
            return self._free
        seconds = now[0] - self._last[0]
        if seconds >= _INTERVAL:
            others = (now[1] - self._last[1]) / seconds
            self._last = now
            # A quarter of a core may be noise.
            self._free = min(self.cores, max(1, math.floor(self.cores - others + 0.25)))
        return self._free

    def _used(self) -> tuple[float, float] | None:
        """The time, and the CPU seconds used by other processes since the system started; None: not reported."""
        fields = _read(Path("/proc/stat")).split("\n", 1)[0].split()
        if len(fields) < 9 or fields[0] != "cpu":
            return None
        user, nice, system, _, _, irq, soft_irq, _ = map(int, fields[1:9])
        busy = (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy - time.process_time()


free_cores = FreeCores()


def threads_for(wanted: int | None) -> int:
    """The number of threads to run with now.

    Args:
        wanted: What the caller asks for. None: as many as torch is set to, but no more than the cores that this process
            may use and that others leave free.

    Returns:
        The number; 1 in a forked process, where more threads would hang.
    """
    if _is_forked:
        return 1
    if wanted is not None:
        return wanted
    return max(1, min(torch.get_num_threads(), own_cores(), free_cores()))


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Makes torch use this number of threads for calls of the current thread, until the end of the block."""
    before = torch.get_num_threads()
    if number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        if not _is_forked:
            torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Lets glibc keep half a gigabyte of freed memory for the next batch, instead of giving it back to the system.

    Every batch frees hundreds of megabytes of feature maps and frames, and allocates as much again. If the memory has
    been given back in between, page faults can take a quarter of a run's time. Other C libraries have no such option.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(option, _KEPT_BYTES)
