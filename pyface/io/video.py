"""Videos and cameras: frames with their times, and annotated videos. PyAV reads and writes them (the extra `video`)."""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyface.io.remote import LIVE_SCHEMES, PATIENCE, open_remote, scheme_of
from pyface.io.sources import is_address, is_live, source_name

CLOCK = 90_000  # ticks per second of written videos: fine enough for every usual frame rate
CODECS = ("libx264", "mpeg4")  # browsers play the first; the second is for builds of PyAV without it
# A video that ends before its stated length by more than both of these has broken off.
MISSING_SHARE, MISSING_SECONDS = 0.05, 0.5


class VideoError(ValueError):
    """A video or camera cannot be read, or breaks off."""


class Frame(NamedTuple):
    """The place of a frame in its source.

    Attributes:
        source: The video or URL as given, or "camera 0".
        frame: Number of frames before it in the source; dropped frames of live sources count too.
        time: Seconds since the first frame, by the video's own clock.
        dropped: Number of frames of a live source skipped since the previous frame, because the caller was busy.
    """

    source: str
    frame: int
    time: float
    dropped: int = 0


def video(
    source: str | Path | int, *, every: int = 1, fps: float | None = None, live: bool | None = None
) -> Iterator[tuple[Frame, NDArray[np.uint8]]]:
    """Reads the frames of a video, a camera or a stream, upright and in order.

    Args:
        source: A file, a URL such as rtsp://..., or the number of a camera.
        every: Keep one frame in this many.
        fps: Keep at most this many frames per second of the video, instead.
        live: Whether to drop frames while the caller is busy, and continue with the newest. None: only for cameras
            and rtsp, rtmp, udp and srt streams.

    Yields:
        The `Frame` and its pixels, uint8 RGB [H, W, 3]. `FaceDetector.stream` takes such pairs.

    Raises:
        ValueError: `every` or `fps` is not positive, or both are given.
        VideoError: The source cannot be opened, has no frames, or breaks off; the frames before that were yielded.
        ImportError: PyAV is not installed.
    """
    if every < 1 or (fps is not None and not 0 < fps < math.inf):
        raise ValueError(f"video: every must be 1 or more, and fps positive, got every={every} and fps={fps}")
    if every > 1 and fps is not None:
        raise ValueError(f"video: every and fps cannot be combined, got every={every} and fps={fps}; use one of them")
    if live is None:
        live = is_live(source if isinstance(source, int) else str(source))
    frames = _selected(_decode(source), every, fps)
    return ((place, _upright(frame)) for place, frame in (_newest(frames) if live else frames))


def video_seconds(source: str | Path) -> float:
    """Returns the length that a video states, in seconds; 0 if it states none or cannot be read, or PyAV is missing."""
    try:
        av = _pyav()
    except ImportError:
        return 0.0
    try:
        with av.open(_openable(str(source)), timeout=PATIENCE) as container:
            return _duration(container, container.streams.video[0])
    except (av.error.FFmpegError, OSError, ValueError, IndexError):
        return 0.0


def _selected(frames: Iterator[tuple[Frame, Any]], every: int, fps: float | None) -> Iterator[tuple[Frame, Any]]:
    due = -math.inf
    for place, frame in frames:
        if place.frame % every == 0 if fps is None else place.time >= due - 1e-6:
            yield place, frame
            # From the due time, not from the frame's, so that rounding to frames does not add up.
            due = place.time if math.isinf(due) or fps is None else max(due, place.time - 1 / fps)
            due += 0 if fps is None else 1 / fps


def _decode(source: str | Path | int) -> Iterator[tuple[Frame, Any]]:
    """The frames of a source as PyAV frames, which are converted to pixels only if they are needed."""
    av = _pyav()
    name = source_name(source if isinstance(source, int) else str(source))
    try:
        if isinstance(source, int):
            container = av.open(*_address(source))
        else:
            container = av.open(_openable(name), timeout=PATIENCE if is_address(name) else None)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        what = "opened" if isinstance(source, int) else "read as a video"
        raise VideoError(f"{name} cannot be {what} ({_reason(error)})") from error
    with container:
        if not container.streams.video:
            raise VideoError(f"{name} has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        count, first, last = 0, 0.0, 0.0
        try:
            for frame in container.decode(stream):
                time = frame.time if frame.time is not None else count / float(stream.average_rate or 25)
                first = time if count == 0 else first
                last = max(last, time - first)
                yield Frame(name, count, time - first), frame
                count += 1
        except av.error.FFmpegError as error:
            what = f"breaks off after {count:,} frames" if count else "cannot be decoded"
            raise VideoError(f"{name} {what} ({_reason(error)})") from error
        if count == 0:
            raise VideoError(f"{name} has no frames")
        seconds = _duration(container, stream)
        if seconds - last > max(MISSING_SECONDS, MISSING_SHARE * seconds):
            raise VideoError(f"{name} breaks off after {last:.1f} of {seconds:.1f} seconds ({count:,} frames)")


def _openable(name: str) -> Any:
    """What PyAV can open: the name of a file or of a URL that FFmpeg reads itself, else the URL's open file."""
    is_own = scheme_of(name) in ("", "http", "https", "ftp", *LIVE_SCHEMES)
    return name if is_own else open_remote(name, seekable=True)


def _duration(container: Any, stream: Any) -> float:
    """The seconds of video that a file states; 0 if it states none."""
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # FFmpeg guesses its duration from the size of the file
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    tags = (value for name, value in stream.metadata.items() if name.startswith("DURATION"))  # Matroska: 00:01:30.04
    parts = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", next(tags, ""))
    if parts is not None:
        return 3600 * float(parts[1]) + 60 * float(parts[2]) + float(parts[3])
    # A container's duration is that of its longest stream.
    return container.duration / 1e6 if container.duration is not None and len(container.streams) == 1 else 0.0


def _upright(frame: Any) -> NDArray[np.uint8]:
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))  # both count counterclockwise


def _newest(frames: Iterator[tuple[Frame, Any]]) -> Iterator[tuple[Frame, Any]]:
    """The newest frame whenever the caller asks for one; a thread reads on in between."""
    ready = threading.Condition()
    newest: list[tuple[Frame, Any]] = []  # one at most
    dropped = 0
    ended: list[BaseException | None] = []
    stop = threading.Event()

    def read() -> None:
        nonlocal dropped
        failure: BaseException | None = None
        try:
            for frame in frames:
                with ready:
                    dropped += len(newest)
                    newest[:] = [frame]
                    ready.notify()
                if stop.is_set():
                    break
        except BaseException as error:  # raised to the caller, in its thread
            failure = error
        with ready:
            ended.append(failure)
            ready.notify()

    thread = threading.Thread(target=read, name="pyface-camera", daemon=True)
    thread.start()
    try:
        while True:
            with ready:
                ready.wait_for(lambda: newest or ended)
                if not newest:
                    break
                place, frame = newest.pop()
                place, dropped = place._replace(dropped=dropped), 0
            yield place, frame
        if ended[0] is not None:
            raise ended[0]
    finally:
        stop.set()


class VideoWriter:
    """Writes a video that browsers play (H.264 in MP4), frame by frame. Sound is not written.

    Use it as a context manager, or call `close`.

    Args:
        path: The file, ending in .mp4, .mov or .mkv.

    Attributes:
        codec: The codec in use: "libx264" or, if PyAV has no H.264 encoder, "mpeg4", which browsers cannot play.

    Raises:
        VideoError: The path is a folder, its folder does not exist, or its suffix is not that of a video.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self._av = _pyav()
        self.codec = next(codec for codec in CODECS if codec in self._av.codecs_available)
        if not Path(path).parent.is_dir():
            raise VideoError(f"{path} cannot be written as a video (there is no folder {Path(path).parent})")
        if Path(path).is_dir():  # PyAV would report it only with the first packet, perhaps at the end
            raise VideoError(f"{path} cannot be written as a video (it is a folder)")
        # The index comes first, so that browsers play a video while they load it.
        options = {"movflags": "+faststart"} if Path(path).suffix.lower() in (".mp4", ".mov", ".m4v") else {}
        try:
            self._container = self._av.open(str(path), "w", options=options)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{path} cannot be written as a video ({_reason(error)})") from error
        self._path = path
        self._stream: Any = None
        self._last = -1

    def write(self, image: NDArray[np.uint8], time: float) -> None:
        """Appends a frame.

        Args:
            image: uint8 RGB [H, W, 3]; all frames of a video have the size of the first.
            time: Seconds since the beginning, later than the previous frame.

        Raises:
            ValueError: The image differs in size from the first one.
            OSError: It cannot be written, for example because the disk is full.
        """
        height, width = image.shape[:2]
        if self._stream is None:
            self._stream = self._container.add_stream(self.codec, rate=Fraction(30))
            self._stream.width, self._stream.height = width + width % 2, height + height % 2  # as H.264 requires
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, CLOCK if self.codec == "libx264" else 1000)
            if self.codec == "libx264":
                self._stream.options = {"preset": "veryfast", "crf": "21"}
            self._size = (height, width)
        if (height, width) != self._size:
            raise ValueError(f"a video's frames must all be {list(self._size)}, got one of {[height, width]}")
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame.time_base = self._stream.codec_context.time_base
        frame.pts = self._last = max(self._last + 1, round(time / frame.time_base))
        self._mux(frame)

    def close(self) -> None:
        """Completes the file.

        Raises:
            OSError: It cannot be written, for example because the disk is full.
        """
        try:
            if self._stream is not None:
                self._mux(None)
        finally:
            self._container.close()

    def _mux(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except self._av.error.FFmpegError as error:
            raise OSError(error.errno, _reason(error), str(self._path)) from error

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _address(camera: int) -> tuple[str, str, str]:
    """Returns how FFmpeg opens a camera: file, mode and format."""
    if sys.platform == "darwin":
        return str(camera), "r", "avfoundation"
    if sys.platform == "win32":
        return f"video={camera}", "r", "dshow"
    return f"/dev/video{camera}", "r", "v4l2"


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError('videos need PyAV: pip install "pyface-engine[video]"') from error
    return av


def _reason(error: Exception) -> str:
    if type(error).__name__ == "ExitError":  # what PyAV's timeout raises
        return f"no answer within {PATIENCE:g} seconds"
    if type(error).__name__ == "DecoderNotFoundError":
        return "PyAV has no decoder for its codec"
    return str(getattr(error, "strerror", None) or error).split("\n")[0]
