"""`pyface detect` on everything that can be wrong with a source: one sentence each, and the run continues."""

import io
import json
import socket
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pyface.io import remote
from pyface.io import video as video_module
from pyface.io.video import VideoWriter

av = pytest.importorskip("av", reason="PyAV is not installed")


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def write_video(tmp_path):
    def write(name, frames=3):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path) as writer:
            for k in range(frames):
                writer.write(np.full((32, 48, 3), 80, np.uint8), k / 4)
        return path

    return write


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_one_sentence_each(run, write_grey, write_video, monkeypatch, tmp_path):
    """The sources of a list, in one run, with good ones at its beginning and end."""
    monkeypatch.setattr(remote, "PATIENCE", 0.5)
    monkeypatch.setattr(video_module, "PATIENCE", 0.5)
    write_grey("good.png", 80)
    write_sound(tmp_path / "sound.mp4")
    codec = write_video("codec.mp4")
    codec.write_bytes(codec.read_bytes().replace(b"avc1", b"none").replace(b"mp4v", b"none"))
    write_video("none.mp4", 0)
    with tarfile.open("cut.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = 600
        archive.addfile(info, io.BytesIO(bytes(600)))
    Path("cut.tar").write_bytes(Path("cut.tar").read_bytes()[:900])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        expected = {
            "good.png": None,
            "gone.png": "gone.png: there is no such file",
            "gone.mp4": "gone.mp4 cannot be read as a video (No such file or directory)",
            "sound.mp4": "sound.mp4 has no video stream",
            "codec.mp4": "codec.mp4 cannot be decoded (PyAV has no decoder for its codec)",
            "none.mp4": "none.mp4 cannot be read as a video (",
            "cut.tar": "cut.tar breaks off after 0 images (unexpected end of data)",
            f"{address}/a.jpg": f"{address}/a.jpg: no answer within 0.5 seconds",
            f"{address}/a.tar": f"{address}/a.tar cannot be read as an archive (no answer within 0.5 seconds)",
            f"{address}/a.mp4": f"{address}/a.mp4 cannot be read as a video (no answer within 0.5 seconds)",
            f"{address}/a": f"{address}/a: no answer within 0.5 seconds",
        }
        Path("list").write_text("\n".join([*expected, "last.png"]))
        write_grey("last.png", 40)
        result = run("detect", "--from-file", "list", "--camera", 63, "--save", "out", status=1)
    lines = lines_of(result.stdout)
    assert [line["source"] for line in lines] == [*expected, "last.png", "camera 63"]
    for line, words in zip(lines, [*expected.values(), None, "camera 63 cannot be opened ("], strict=True):
        assert line["error"] is None if words is None else line["error"].startswith(words)
    assert [len(lines[k]["faces"]) for k in (0, -2)] == [2, 1]
    assert len(result.stderr.splitlines()) == 1


def test_names_of_copies_that_clash(run, write_grey, write_video):
    for name in ("in/a.png", "in/b/c.png", "in/d.png"):
        write_grey(name, 80)
    write_video("in/e.mp4")
    write_video("in/f/g.mp4")
    for folder in ("out/a.png", "out/e.mp4"):
        Path(folder).mkdir(parents=True)
    for file in ("out/b", "out/f"):
        Path(file).write_text("a file in the place of a folder")
    lines = lines_of(run("detect", "in", "-r", "--save", "out", status=1).stdout)
    failures = {line["source"]: line["error"] for line in lines if line["error"] is not None}
    assert sorted(failures) == ["in/a.png", "in/b/c.png", "in/e.mp4", "in/f/g.mp4"]
    places = {"in/a.png": "out/a.png", "in/b/c.png": "out/b", "in/e.mp4": "out/e.mp4", "in/f/g.mp4": "out/f"}
    for source, place in places.items():
        assert failures[source].startswith(f"{place} cannot be written (")
        assert failures[source].endswith("; move what is there, or choose another folder")
    assert Path("out/d.png").is_file()


@pytest.mark.parametrize("how", [(), ("--blur",)])
def test_names_of_crops_and_covered_copies_that_clash(run, write_grey, how):
    write_grey("in/a.png", 80)
    write_grey("in/b.png", 80)
    Path("out/a.png").mkdir(parents=True)
    Path("faces/b.png-1.png").mkdir(parents=True)
    lines = lines_of(run("detect", "in", "--save", "out", "--crops", "faces", *how, status=1).stdout)
    assert [line["error"].split(" cannot be written (")[0] for line in lines] == ["out/a.png", "faces/b.png-1.png"]
