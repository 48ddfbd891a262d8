"""Videos that the tests write: frames, times, rotation, and what is wrong with broken ones."""

import socket
import struct
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed")

from pyface.io import video as module  # noqa: E402
from pyface.io.video import Frame, VideoError, VideoWriter, video  # noqa: E402

GREYS = tuple(range(20, 240, 20))  # of the eleven frames


def write(path, times=None, size=(48, 64), greys=GREYS):
    with VideoWriter(path) as writer:
        for k, grey in enumerate(greys):
            image = np.full((*size, 3), grey, np.uint8)
            writer.write(image, k / 10 if times is None else times[k])
    return path


def levels(frames):
    return [round(float(image.mean()), -1) for _, image in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_and_times(tmp_path, suffix):
    path = write(tmp_path / f"video{suffix}")
    frames = list(video(path))
    assert [place.frame for place, _ in frames] == list(range(11))
    assert [place.time for place, _ in frames] == pytest.approx([k / 10 for k in range(11)], abs=2e-3)
    assert {place.source for place, _ in frames} == {str(path)}
    assert levels(frames) == list(GREYS)
    assert all(image.shape == (48, 64, 3) and image.dtype == np.uint8 for _, image in frames)


def test_times_of_a_variable_frame_rate(tmp_path):
    times = [0, 0.1, 0.15, 0.5, 0.51, 0.52, 1.0, 2.0, 2.5, 2.6, 3.0]
    frames = video(write(tmp_path / "video.mp4", times))
    assert [place.time for place, _ in frames] == pytest.approx(times, abs=1e-3)


def test_some_of_the_frames(tmp_path):
    path = write(tmp_path / "video.mp4")
    assert [place.frame for place, _ in video(path, every=4)] == [0, 4, 8]
    assert [place.frame for place, _ in video(path, fps=5)] == [0, 2, 4, 6, 8, 10]
    assert [place.frame for place, _ in video(path, fps=4)] == [0, 3, 5, 8, 10]  # at 0, 0.25, 0.5, 0.75, 1.0
    assert len(list(video(path, fps=1000))) == 11


@pytest.mark.parametrize("options", [{"every": 0}, {"fps": 0.0}, {"fps": float("nan")}, {"every": 2, "fps": 1.0}])
def test_what_to_keep_is_checked(options):
    with pytest.raises(ValueError, match=r"video: every must be|every and fps cannot be combined"):
        video("video.mp4", **options)


def test_odd_sizes(tmp_path):
    path = write(tmp_path / "video.mp4", size=(31, 45))
    assert {image.shape for _, image in video(path)} == {(32, 46, 3)}
    with VideoWriter(tmp_path / "two.mp4") as writer:
        writer.write(np.zeros((8, 8, 3), np.uint8), 0)
        with pytest.raises(ValueError, match=r"must all be \[8, 8\], got one of \[8, 9\]"):
            writer.write(np.zeros((8, 9, 3), np.uint8), 1)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_videos_of_phones_are_turned_upright(tmp_path, turns):
    """A phone stores the pixels as its sensor has them, and a matrix that turns them."""
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:16, :16] = 255  # the upper left corner
    stored = np.ascontiguousarray(np.rot90(upright, turns))  # has to be turned clockwise
    with VideoWriter(tmp_path / "video.mp4") as writer:
        for k in range(3):
            writer.write(stored, k / 10)
    content = bytearray((tmp_path / "video.mp4").read_bytes())
    # The matrix (a b u c d v x y w) of the track's header, version 0: 16.16 fixed point, 48 bytes into the box.
    start = content.index(b"tkhd") + 4 + 40
    a, b, c, d = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[turns]
    content[start : start + 36] = struct.pack(">9i", *(v * 65536 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content)
    for _, image in video(tmp_path / "turned.mp4"):
        assert image.shape == upright.shape
        assert np.abs(image.astype(int) - upright).mean() < 6


def test_a_video_that_breaks_off(tmp_path):
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "video.mkv") as writer:
        for k in range(11):
            writer.write(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8), k / 2)
    content = (tmp_path / "video.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(content[: len(content) * 6 // 10])
    seen = []
    with pytest.raises(VideoError, match=r"cut\.mkv breaks off after .* frames"):
        seen.extend(video(tmp_path / "cut.mkv"))
    assert 0 < len(seen) < 11
    (tmp_path / "cut.mp4").write_bytes(write(tmp_path / "video.mp4").read_bytes()[:500])
    with pytest.raises(VideoError, match=r"cut\.mp4 (cannot be|breaks off|has no)"):
        list(video(tmp_path / "cut.mp4"))


@pytest.mark.parametrize("suffix", ["mkv", "avi"])
def test_a_video_with_sound_that_breaks_off(tmp_path, suffix):
    """The container's length is that of its longest stream, and FFmpeg guesses an AVI's from the size of the file."""
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / f"whole.{suffix}"), "w") as container:
        picture, sound = container.add_stream("mpeg4", rate=25), container.add_stream("aac", rate=8000)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        for k in range(80):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(picture.encode(frame))
            noise = av.AudioFrame.from_ndarray(rng.random((1, 320), np.float32), format="fltp", layout="mono")
            noise.pts, noise.sample_rate = 320 * k, 8000
            container.mux(sound.encode(noise))
        container.mux(picture.encode())
        container.mux(sound.encode())
    assert len(list(video(tmp_path / f"whole.{suffix}"))) == 80
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=rf"cut\.{suffix} breaks off after 1\.\d of 3\.\d seconds"):
        list(video(tmp_path / f"cut.{suffix}"))


def test_files_that_are_not_videos(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("text.mp4", "empty.mp4", "gone.mp4"):
        with pytest.raises(VideoError, match=rf"{name} cannot be read as a video \(.+\)$"):
            list(video(tmp_path / name))
    for name in ("none/video.mp4", "video.xyz"):
        with pytest.raises(VideoError, match=rf"{name} cannot be written as a video \(.+\)$"):
            VideoWriter(tmp_path / name)


def test_a_camera_that_is_not_there():
    with pytest.raises(VideoError, match=r"^camera 63 cannot be opened \(.+\)$"):
        next(video(63))


def test_sound_alone(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"sound\.mp4 has no video stream"):
        list(video(tmp_path / "sound.mp4"))


def test_an_unknown_codec(tmp_path):
    with VideoWriter(tmp_path / "video.mp4") as writer:
        writer.write(np.full((32, 48, 3), 80, np.uint8), 0)
    content = (tmp_path / "video.mp4").read_bytes()
    (tmp_path / "video.mp4").write_bytes(content.replace(b"avc1", b"none").replace(b"mp4v", b"none"))
    with pytest.raises(VideoError, match=r"video\.mp4 cannot be decoded \(PyAV has no decoder for its codec\)"):
        list(video(tmp_path / "video.mp4"))


def test_without_pyav(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r'videos need PyAV: pip install "pyface-engine\[video\]"'):
        list(video("video.mp4"))


def test_live_sources_continue_with_the_newest_frame(monkeypatch):
    consumed = threading.Semaphore(0)

    def camera(source):
        for k in range(6):
            if k in (1, 5):
                consumed.acquire(timeout=10)  # pauses until the caller took a frame
            yield Frame(str(source), k, k / 10), k

    monkeypatch.setattr(module, "_decode", camera)
    monkeypatch.setattr(module, "_upright", lambda frame: frame)
    seen = []
    for place, _ in video(0):
        seen.append((place.frame, place.dropped))
        consumed.release()
        time.sleep(0.2)  # busy, while frames 1 to 4 are read
    assert seen == [(0, 0), (4, 3), (5, 0)]


def test_live_sources_drop_only_what_was_asked_for(monkeypatch):
    monkeypatch.setattr(module, "_decode", lambda source: ((Frame(str(source), k, k / 10), k) for k in range(10)))
    monkeypatch.setattr(module, "_upright", lambda frame: frame)
    monkeypatch.setattr(module, "_newest", lambda frames: frames)
    assert [place.frame for place, _ in video(0, every=4)] == [0, 4, 8]
    assert [place.frame for place, _ in video(0, fps=5)] == [0, 2, 4, 6, 8]


def test_an_address_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/live"
        with pytest.raises(
            VideoError, match=rf"^{address} cannot be read as a video \(no answer within 0.5 seconds\)$"
        ):
            next(video(address))
    with pytest.raises(VideoError, match=rf"^{address} cannot be read as a video \(.+\)$"):
        next(video(address))


def test_seconds_of_a_video(tmp_path):
    assert module.video_seconds(write(tmp_path / "video.mp4")) == pytest.approx(1.1, abs=0.11)
    (tmp_path / "text.mp4").write_text("no video")
    assert module.video_seconds(tmp_path / "text.mp4") == 0


def test_a_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "video.mkv").symlink_to("/dev/full")
    writer = VideoWriter(tmp_path / "video.mkv")
    for k in range(3):
        writer.write(np.zeros((64, 64, 3), np.uint8), k / 10)
    with pytest.raises(OSError, match="No space left on device"):
        writer.close()


def test_errors_of_a_live_source_reach_the_caller(monkeypatch):
    def unplugged(source):
        yield Frame(str(source), 0, 0.0), 0
        raise VideoError("0 breaks off after 1 frames")

    monkeypatch.setattr(module, "_decode", unplugged)
    monkeypatch.setattr(module, "_upright", lambda frame: frame)
    with pytest.raises(VideoError, match="breaks off after 1 frames"):
        list(video(0))
