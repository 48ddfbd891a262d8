"""Speed of a detector on this machine, end to end and by stage, for `pyface benchmark`.

Speed is measured as in real use: encoded images in, faces out, with decoding in threads ahead of detection. The stages
are then timed one after the other, so their sum is the work per image, not the time between images.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyface import __version__
from pyface.detector import FaceDetector
from pyface.io.images import decode_image, open_image, read_image
from pyface.io.sources import find_sources
from pyface.ops.extension import observed_launches

STAGES = ("decode", "letterbox", "network", "post-processing")
MOST_IMAGES = 64  # from a folder; passes must be short enough for several of them
CANDIDATES = 300  # typical number above a usual threshold for an image with a dozen faces


@dataclass(frozen=True)
class Timing:
    """The measurements of one detector.

    Attributes:
        pictures_per_second: Images per second, end to end; median over passes.
        stages: Milliseconds per image for each of `STAGES`, median over passes, with synchronisation after each stage.
            "letterbox" is all resampling (including MTCNN's pyramid and crops) and the transfer to the device.
        faces: Mean number of faces found per image.
        repeats: Number of passes behind `pictures_per_second`.
        pictures: Number of images per pass.
        peak_rss: Peak main memory of the process in bytes, including torch itself.
        peak_cuda: Peak GPU memory of tensors in bytes; None on the CPU.
    """

    pictures_per_second: float
    stages: dict[str, float]
    faces: float
    repeats: int
    pictures: int
    peak_rss: int
    peak_cuda: int | None


def measure(detector: FaceDetector, sources: Sequence[bytes], seconds: float = 5.0) -> Timing:
    """Times a detector on encoded images.

    Args:
        detector: The detector.
        sources: Contents of image files; repeated to fill at least two batches.
        seconds: How long to measure. There are at least three passes, or at least one if the first takes longer than
            `seconds`.

    Raises:
        ValueError: There are no images, or seconds is not > 0.
        ImageError, MemoryError: Raised by the detector.

    Example:
        >>> detector = FaceDetector("mtcnn", device="cpu", batch_size=1)
        >>> timing = measure(detector, [Path("examples/astronaut.jpg").read_bytes()], seconds=0.1)
        >>> list(timing.stages), timing.faces
        (['decode', 'letterbox', 'network', 'post-processing'], 1.0)
    """
    if not sources:
        raise ValueError("sources must be one image or more, got none")
    if not seconds > 0:
        raise ValueError(f"seconds must be more than 0, got {seconds}")
    sources = list(sources) * -(-2 * detector.batch_size // len(sources))
    _reset_peaks(detector.device)
    found = detector(sources)
    passes = _repeat(lambda: detector(sources), seconds * 2 / 3)
    peak_rss, peak_cuda = _peaks(detector.device)
    return Timing(
        pictures_per_second=len(sources) / statistics.median(passes),
        stages=_stages(detector, sources, seconds / 3),
        faces=sum(map(len, found)) / len(found),
        repeats=len(passes),
        pictures=len(sources),
        peak_rss=peak_rss,
        peak_cuda=peak_cuda,
    )


def _repeat(call: Callable[[], Any], seconds: float) -> list[float]:
    """Times repeated calls; returns the seconds of each. The caller has made the warm-up call already."""
    times: list[float] = []
    while not times or sum(times) < seconds or (len(times) < 3 and times[0] <= seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _stages(detector: FaceDetector, sources: Sequence[bytes], seconds: float) -> dict[str, float]:
    passes: list[dict[str, float]] = []

    def one_pass() -> None:
        start = time.perf_counter()
        images = [decode_image(open_image(source)) for source in sources]
        decoded = time.perf_counter() - start
        with StageClock(detector) as clock:
            for first in range(0, len(images), detector.batch_size):
                clock.enter("letterbox")
                detector(images[first : first + detector.batch_size])
        passes.append({"decode": decoded} | clock.seconds)

    _repeat(one_pass, seconds)
    return {stage: 1000 / len(sources) * statistics.median(of[stage] for of in passes) for stage in STAGES}


class StageClock:
    """A context manager that splits the time of a detector's calls into stages.

    Every moment belongs to one stage: "letterbox" begins when a resampling kernel is launched, "network" when a network
    starts, and "post-processing" when it ends. On CUDA each stage ends with a synchronisation, which takes some time
    itself.

    Attributes:
        seconds: Seconds by stage.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self.seconds = dict.fromkeys(STAGES[1:], 0.0)
        self._device = detector.device
        self._networks = detector.model.networks()
        self._stage: str | None = None
        self._since = 0.0
        self._undo = contextlib.ExitStack()

    def enter(self, stage: str | None) -> None:
        """Ends the current stage and begins `stage`, if that is not None."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now

    def __enter__(self) -> StageClock:
        for network in self._networks:
            before = network.register_forward_pre_hook(lambda *_: self.enter("network"))
            after = network.register_forward_hook(lambda *_: self.enter("post-processing"))
            self._undo.callback(before.remove)
            self._undo.callback(after.remove)
        self._undo.enter_context(observed_launches(self._enter_resampling))
        return self

    def _enter_resampling(self, op: str) -> None:
        if op in ("letterbox", "crop_resize"):
            self.enter("letterbox")

    def __exit__(self, *_: object) -> None:
        self.enter(None)
        self._undo.close()


def stand_in_threshold(detector: FaceDetector, sources: Sequence[bytes], candidates: int = CANDIDATES) -> float:
    """Finds the score threshold that a given number of candidates per image exceed on average, whatever the weights.

    With random weights all scores are similar, so a usual threshold is exceeded by none of the candidates or by all.
    Neither gives a realistic cost of post-processing.

    Args:
        detector: A detector with a single-shot model.
        sources: Contents of image files.
        candidates: Number of candidates before suppression, over all views of an image.
    """
    scores: list[Tensor] = []
    images = list(sources)[: detector.batch_size]

    def collect(model: Any, _: object, maps: Any) -> None:
        found = model.candidates(maps, score_threshold=0.0, max_candidates=candidates * len(images) + 1)
        scores.extend(row[:count] for row, count in zip(found.scores, found.count.tolist(), strict=True))

    hook = detector.model.register_forward_hook(collect)
    try:
        detector(images)
    finally:
        hook.remove()
    best = torch.cat(scores).sort(descending=True).values
    return best[candidates * len(images)].item() if len(best) > candidates * len(images) else 0.0


def find_images(folder: Path | None) -> list[bytes]:
    """Returns the contents of the image files to measure on, after checking that they can be decoded.

    Args:
        folder: A folder of images, of which at most 64 are used, evenly spread. None: pyface's examples, or if these
            are not installed, the one image in the package.

    Raises:
        SourceError: The folder does not exist, or has no images.
        ImageError: An image cannot be read.
    """
    if folder is None:
        examples = Path(__file__).parents[1] / "examples"
        folder = examples if (examples / "astronaut.jpg").is_file() else Path(str(files("pyface") / "assets"))
    paths = find_sources([str(folder)])
    paths = paths[:: -(-len(paths) // MOST_IMAGES)]
    for path in paths:
        read_image(path)  # only to check it: its errors name the file
    return [Path(path).read_bytes() for path in paths]


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Returns what the figures depend on: the machine, the number of threads, and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyface": __version__,
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _reset_peaks(device: torch.device) -> None:
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak covers the process from its start
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: torch.device) -> tuple[int, int | None]:
    return _peak_rss(), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _peak_rss() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
