"""How fast a detector is on this machine, end to end and by stage: what `pyface benchmark` prints.

Speed is measured as users meet it: encoded pictures in, faces out, decoding in threads ahead of the detection. The
stages are then timed one after the other, so that their sum is what a picture costs and not how long it takes.
"""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyface import __version__, ops
from pyface.detector import FaceDetector
from pyface.io.images import decode_image, open_image, read_image
from pyface.io.sources import find_sources
from pyface.models.base import FaceModel
from pyface.models.single_shot import SingleShot

STAGES = ("decode", "letterbox", "network", "post-processing")
MOST_PICTURES = 64  # of a folder; a pass over them should be short, so that there are several
CANDIDATES = 300  # a picture that shows a dozen faces brings about so many above a usual threshold


@dataclass(frozen=True)
class Timing:
    """What was measured of one detector.

    Attributes:
        pictures_per_second: End to end; median over passes.
        stages: Milliseconds a picture of each of `STAGES`, median over passes, each stage waited for. "letterbox" is
            all resampling (MTCNN's pyramid and crops too) and the way to the device.
        faces: Found in a picture, on average.
        repeats: Passes that the first figure is the median of.
        pictures: Pictures of a pass.
        peak_rss: Bytes of main memory that the process held at most, torch itself among them.
        peak_cuda: Bytes of the GPU's memory that tensors held at most; None on the CPU.
    """

    pictures_per_second: float
    stages: dict[str, float]
    faces: float
    repeats: int
    pictures: int
    peak_rss: int
    peak_cuda: int | None


def measure(detector: FaceDetector, sources: Sequence[bytes], seconds: float = 5.0) -> Timing:
    """Times a detector on encoded pictures.

    Args:
        detector: Whose batches are looked at.
        sources: Pictures as their files hold them; repeated until they fill two batches.
        seconds: How long to measure; at least one pass is made, and three if a pass takes no longer than this.

    Raises:
        ValueError: There are no pictures, or seconds is not > 0.
        ImageError, MemoryError: As the detector raises them.

    Example:
        >>> detector = FaceDetector("mtcnn", device="cpu", batch_size=1)
        >>> timing = measure(detector, [Path("examples/astronaut.jpg").read_bytes()], seconds=0.1)
        >>> list(timing.stages), timing.faces
        (['decode', 'letterbox', 'network', 'post-processing'], 1.0)
    """
    if not sources:
        raise ValueError("measure takes one picture or more, got none")
    if not seconds > 0:
        raise ValueError(f"seconds should be > 0, got {seconds}")
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
    """The seconds of each call. The first one, which the caller made, warmed up."""
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
    """Tells apart what the calls of a detector spend their time on, while it is entered.

    Every moment belongs to one stage: to "letterbox" from the call of a resampling op on, to "network" while one runs,
    and to "post-processing" after it. On CUDA each stage is waited for, which costs some time of its own.

    Attributes:
        seconds: By stage.
    """

    def __init__(self, detector: FaceDetector) -> None:
        self.seconds = dict.fromkeys(STAGES[1:], 0.0)
        self._device = detector.device
        self._networks = _networks(detector.model)
        self._stage: str | None = None
        self._since = 0.0
        self._undo = contextlib.ExitStack()

    def enter(self, stage: str | None) -> None:
        """Ends the present stage and begins another one; None: begins none."""
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
        for name in ("letterbox", "crop_resize"):
            self._undo.enter_context(_announced(name, lambda: self.enter("letterbox")))
        return self

    def __exit__(self, *_: object) -> None:
        self.enter(None)
        self._undo.close()


@contextlib.contextmanager
def _announced(name: str, announce: Callable[[], None]) -> Iterator[None]:
    """Has an op of `pyface.ops` say when it is called."""
    op = getattr(ops, name)

    def announced(*arguments: Any, **options: Any) -> Any:
        announce()
        return op(*arguments, **options)

    setattr(ops, name, announced)
    try:
        yield
    finally:
        setattr(ops, name, op)


def _networks(model: FaceModel) -> list[nn.Module]:
    return [model] if isinstance(model, SingleShot) else list(model.children())  # a cascade has several


def stand_in_threshold(detector: FaceDetector, sources: Sequence[bytes], candidates: int = CANDIDATES) -> float:
    """A score threshold that so many candidates a picture pass, on average, whatever the weights.

    With random weights all scores are much alike, so that a usual threshold lets none of the candidates pass or all
    of them, and neither costs what post-processing costs.

    Args:
        detector: With a single-shot model.
        sources: Pictures.
        candidates: How many before suppression, in all views of a picture together.
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


def find_pictures(folder: Path | None) -> list[bytes]:
    """The pictures to look at, as their files hold them.

    Args:
        folder: Where they are, at most 64 are taken, evenly spread; None: pyface's examples, or, where these are not
            installed, the one picture in the package.

    Raises:
        SourceError: There is no such folder, or no picture in it.
        ImageError: A picture cannot be read.
    """
    if folder is None:
        examples = Path(__file__).parents[1] / "examples"
        folder = examples if (examples / "astronaut.jpg").is_file() else Path(str(files("pyface") / "assets"))
    paths = find_sources([str(folder)])
    paths = paths[:: -(-len(paths) // MOST_PICTURES)]
    for path in paths:
        read_image(path)  # whose errors name the file
    return [Path(path).read_bytes() for path in paths]


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Names what figures depend on: the machine, its threads, and versions."""
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
    with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is that of the whole process so far
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
