"""`pyface detect` on videos and cameras: a line per frame, annotated videos, and what is wrong with them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed")

from pyface.detections import Detections
from pyface.io import video as video_module
from pyface.io.video import Frame, VideoError, VideoWriter, video


@pytest.fixture
def write_video(tmp_path):
    """Writes a video of flat grey frames, four per second (40 is one fake face, 80 two), and returns its path."""

    def write(name, levels=(40, 80, 0, 120), size=(32, 48)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path) as writer:
            for k, level in enumerate(levels):
                writer.write(np.full((*size, 3), level, np.uint8), k / 4)
        return path

    return write


@pytest.fixture
def camera(monkeypatch):
    """Gives every camera these events: grey levels of frames, and errors that it raises."""
    real = video_module._decode, video_module._upright

    def install(*events):
        def decode(source):
            if not isinstance(source, int):
                yield from real[0](source)
                return
            for k, event in enumerate(events):
                if not isinstance(event, int):
                    raise event
                yield Frame(f"camera {source}", k, k / 4, 0 if k < 2 else 3), np.full((32, 48, 3), event, np.uint8)

        monkeypatch.setattr(video_module, "_decode", decode)
        monkeypatch.setattr(video_module, "_newest", lambda frames: frames)
        monkeypatch.setattr(
            video_module, "_upright", lambda frame: frame if isinstance(frame, np.ndarray) else real[1](frame)
        )

    return install


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def faces_of(lines):
    return [len(line["faces"]) for line in lines]


def test_one_line_per_frame(run, write_video):
    write_video("video.mp4")
    lines = lines_of(run("detect", "video.mp4").stdout)
    assert list(lines[0]) == ["source", "frame", "time", "width", "height", "faces", "error"]
    assert [(line["source"], line["frame"], line["time"]) for line in lines] == [
        ("video.mp4", k, k / 4) for k in range(4)
    ]
    assert faces_of(lines) == [1, 2, 0, 3]
    assert Detections.from_dict(lines[3]).source == "video.mp4"
    assert {(line["width"], line["height"], line["error"]) for line in lines} == {(48, 32, None)}


def test_videos_among_photos(run, write_video, write_grey):
    write_grey("in/a.png", 80)
    write_video("in/b.mkv", (40, 40))
    write_video("in/c.mp4", (120,))
    write_grey("in/d.png", 40)
    lines = lines_of(run("detect", "in", "--save", "out").stdout)
    assert [Path(line["source"]).name for line in lines] == ["a.png", "b.mkv", "b.mkv", "c.mp4", "d.png"]
    assert faces_of(lines) == [2, 1, 1, 3, 1]
    assert ["frame" in line for line in lines] == [False, True, True, True, False]
    assert sorted(path.name for path in Path("out").iterdir()) == [".pyface", "a.png", "b.mkv.mp4", "c.mp4", "d.png"]


def test_the_saved_video(run, write_video):
    write_video("video.mov", (80,) * 20 + (0,) * 20)
    run("detect", "video.mov", "--save", "out", "--every", 2)
    frames = list(video("out/video.mov.mp4"))
    assert [place.time for place, _ in frames] == pytest.approx([k / 2 for k in range(20)], abs=1e-3)
    drawn = [np.abs(image.astype(int) - (80 if place.time < 4.9 else 0)).max() > 60 for place, image in frames]
    assert drawn == [True] * 10 + [False] * 10


def test_some_of_the_frames(run, write_video, assert_one_sentence):
    write_video("video.mp4", (40,) * 10)
    assert [line["frame"] for line in lines_of(run("detect", "video.mp4", "--every", 4).stdout)] == [0, 4, 8]
    assert [line["frame"] for line in lines_of(run("detect", "video.mp4", "--fps", 2).stdout)] == [0, 2, 4, 6, 8]
    assert_one_sentence(run("detect", "video.mp4", "--fps", 2, "--every", 3, status=2), "--every and --fps")


def test_csv_of_videos_and_photos(run, write_video, write_grey):
    write_video("in/a.mp4", (80, 0))
    write_grey("in/b.png", 40)
    run("detect", "in", "--output", "faces.csv")
    with open("faces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["time"], row["face"]) for row in rows] == [
        ("0", "0.0", "0"),
        ("0", "0.0", "1"),
        ("1", "0.25", ""),
        ("", "", "0"),
    ]


def test_more_frames_than_any_queue_holds(run, write_video):
    write_video("video.mp4", [40 * (k // 10 % 4) for k in range(150)])
    result = run("detect", "video.mp4", "--output", "faces.jsonl")
    lines = lines_of(Path("faces.jsonl").read_text())
    assert [line["frame"] for line in lines] == list(range(150))
    assert faces_of(lines) == [k // 10 % 4 for k in range(150)]
    assert "faces in 150 frames, " in result.stderr


def test_bad_videos_are_reported_and_the_run_continues(run, write_video, write_grey, tmp_path):
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "whole.mkv") as writer:
        for k in range(12):
            writer.write(rng.integers(60, 100, (96, 128, 3), dtype=np.uint8), k / 2)
    content = Path("whole.mkv").read_bytes()
    Path("cut.mkv").write_bytes(content[: len(content) * 6 // 10])
    Path("text.mp4").write_text("no video")
    write_video("none.mp4", ())
    write_grey("z.png", 80)
    result = run(
        *("detect", "text.mp4", "cut.mkv", "none.mp4", "gone.mp4", "rtsp://127.0.0.1:9/live", "z.png"),
        *("--save", "out"),
        status=1,
    )
    lines = lines_of(result.stdout)
    assert lines[0]["error"].startswith("text.mp4 cannot be read as a video (")
    cut = [line for line in lines if line["source"] == "cut.mkv"]
    assert 0 < len(cut[:-1]) < 12
    assert all(line["error"] is None for line in cut[:-1])
    assert "cut.mkv breaks off after" in cut[-1]["error"]
    assert "frame" not in cut[-1]
    assert len(list(video("out/cut.mkv.mp4"))) == len(cut) - 1
    assert [line["error"].split(" (")[0] for line in lines[-4:-1]] == [
        "none.mp4 cannot be read as a video",
        "gone.mp4 cannot be read as a video",
        "rtsp://127.0.0.1:9/live cannot be read as a video",
    ]
    assert faces_of(lines[-1:]) == [2]
    assert f"in 1 image and {len(cut) - 1} frames, 5 videos could not be read, " in result.stderr


def test_without_pyav(run, write_video, write_grey, monkeypatch):
    write_video("video.mp4")
    write_grey("a.png", 40)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    result = run("detect", "video.mp4", "a.png", status=1)
    assert "1 face in 1 image, 1 video could not be read" in result.stderr
    lines = lines_of(result.stdout)
    assert lines[0]["error"] == 'videos need PyAV: pip install "pyface-engine[video]"'
    assert faces_of(lines) == [0, 1]


@pytest.mark.parametrize("place", ["out/video.mp4", "out"])
def test_faces_are_kept_if_a_video_cannot_be_saved(run, write_video, place):
    write_video("video.mp4", (80, 0, 40))
    Path("out/video.mp4").mkdir(parents=True)
    if place == "out":
        Path("out/video.mp4").rmdir()
        Path("out/video.mp4").write_bytes(b"somebody's video")
    result = run("detect", "video.mp4", "--save", "out", status=1)
    lines = lines_of(result.stdout)
    assert faces_of(lines) == [2, 0, 1]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert lines[0]["error"].startswith("out/video.mp4 cannot be written")
    assert [line["error"] for line in lines[1:]] == [None, None]
    assert "3 faces in 3 frames, 1 copy could not be written, " in result.stderr
    if place == "out":
        assert Path("out/video.mp4").read_bytes() == b"somebody's video"


def test_faces_are_kept_if_a_crop_of_a_frame_cannot_be_saved(run, write_video):
    write_video("video.mp4", (80, 40))
    Path("crops").mkdir()
    Path("crops/video.mp4-000000-1.png").write_bytes(b"somebody's photo")
    result = run("detect", "video.mp4", "--crops", "crops", status=1)
    lines = lines_of(result.stdout)
    assert faces_of(lines) == [2, 1]
    assert lines[0]["error"].startswith("crops/video.mp4-000000-1.png cannot be written (File exists)")
    assert lines[1]["error"] is None
    assert Path(lines[1]["faces"][0]["crop"]).is_file()
    assert "1 copy could not be written" in result.stderr


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["faces.jsonl", "faces.csv"])
@pytest.mark.parametrize("save", [(), ("--save", "out")])
def test_resume_after_any_cut(run, write_video, write_grey, name, save):
    """Whatever byte the file was cut at, resuming makes it what an uncut run makes, and the saved videos are whole."""
    write_grey("in/a.png", 80)
    write_video("in/b.mp4", (80, 0, 40, 40, 120))
    Path("in/c.mp4").write_bytes(b"no video")
    write_video("in/d.mp4", (40, 80))
    run("detect", "in", "--output", f"whole/{name}", *save, status=1)
    whole = Path(f"whole/{name}").read_bytes()
    for length in [*range(0, len(whole), 331), len(whole) - 1, len(whole)]:
        Path(name).write_bytes(whole[:length])
        for path in Path("out").glob("*"):
            path.unlink()
        run("detect", "in", "--output", name, "--resume", *save, status=1)
        assert Path(name).read_bytes() == whole
    if save:
        assert len(list(video("out/d.mp4"))) == 2  # done again, since it ended the file


def test_resume_tries_videos_again_that_could_not_be_opened(run, write_video, write_grey):
    write_video("in/a.mp4")
    write_grey("in/b.png")
    write_video("in/c.mp4")
    content = Path("in/a.mp4").read_bytes()
    Path("in/a.mp4").write_bytes(b"no video")
    run("detect", "in", "--output", "faces.jsonl", status=1)
    whole = Path("faces.jsonl").read_bytes()
    Path("in/a.mp4").write_bytes(content)
    Path("faces.jsonl").write_bytes(whole[: whole.rindex(b'{"source')])  # within c.mp4, which is continued
    run("detect", "in", "--output", "faces.jsonl", "--resume")
    run("detect", "in", "--output", "whole.jsonl")
    assert Path("faces.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_resume_continues_within_a_video(run, write_video, fake_model):
    write_video("video.mp4", (40,) * 20)
    run("detect", "video.mp4", "--output", "faces.jsonl", "--batch-size", 1)
    whole = Path("faces.jsonl").read_bytes()
    Path("faces.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:15]))
    fake_model.batches.clear()
    run("detect", "video.mp4", "--output", "faces.jsonl", "--batch-size", 1, "--resume")
    assert Path("faces.jsonl").read_bytes() == whole
    assert sum(fake_model.batches) == 5


def test_resume_finishes_the_video_that_was_cut_first(run, write_video, write_grey, assert_one_sentence):
    """Otherwise a third run could not tell that the video is unfinished."""
    write_video("video.mp4", (40,) * 6)
    run("detect", "video.mp4", "--output", "faces.jsonl")
    Path("faces.jsonl").write_bytes(b"".join(Path("faces.jsonl").read_bytes().splitlines(keepends=True)[:3]))
    write_grey("a.png", 40)
    assert_one_sentence(
        run("detect", "a.png", "--output", "faces.jsonl", "--resume", status=2),
        "ends within video.mp4",
        "name that video",
    )
    run("detect", "a.png", "video.mp4", "--output", "faces.jsonl", "--resume")
    lines = lines_of(Path("faces.jsonl").read_text())
    assert [line.get("frame") for line in lines] == [*range(6), None]


def test_resume_with_other_frames_is_refused(run, write_video, assert_one_sentence):
    write_video("video.mp4", (40,) * 6)
    run("detect", "video.mp4", "--output", "faces.jsonl", "--every", 2)
    result = run("detect", "video.mp4", "--output", "faces.jsonl", "--resume", status=2)
    assert_one_sentence(result, "made with every 2", "this command has every 1")


# --- cameras ---------------------------------------------------------------------------------------------------------


def test_camera(run, camera):
    camera(40, 80, 120, VideoError("camera 0 breaks off after 3 frames (No such device)"))
    result = run("detect", "--camera", 0, "--save", "out", "--output", "faces.jsonl", status=1)
    lines = lines_of(Path("faces.jsonl").read_text())
    assert [line["source"] for line in lines] == ["camera 0"] * 4
    assert faces_of(lines) == [1, 2, 3, 0]
    assert "camera 0 breaks off after 3 frames" in lines[-1]["error"]
    assert "6 faces in 3 frames, 3 frames dropped, 1 video could not be read" in result.stderr
    assert len(list(video("out/camera 0.mp4"))) == 3


def test_frames_of_a_camera_are_not_taken_ahead(run, camera, fake_model):
    camera(*[40] * 20)
    run("detect", "--camera", 0, "--batch-size", 8)
    assert fake_model.batches == [1] * 20


def test_ctrl_c_completes_the_video_of_a_camera(run, camera, assert_one_sentence):
    camera(40, 80, KeyboardInterrupt())
    result = run("detect", "--camera", 0, "--save", "out", "--output", "faces.jsonl", status=130)
    assert_one_sentence(result, "interrupted, 0 of 1 source and 2 frames are done")
    assert faces_of(lines_of(Path("faces.jsonl").read_text())) == [1, 2]
    assert len(list(video("out/camera 0.mp4"))) == 2


def test_a_camera_that_is_not_there(run, write_grey):
    write_grey("a.png", 40)
    lines = lines_of(run("detect", "a.png", "--camera", 63, status=1).stdout)
    assert faces_of(lines) == [1, 0]
    assert lines[1]["error"].startswith("camera 63 cannot be opened (")


def test_a_camera_cannot_be_resumed(run, camera, assert_one_sentence):
    camera(40)
    result = run("detect", "--camera", 0, "--output", "faces.jsonl", "--resume", status=2)
    assert_one_sentence(result, "camera 0 has no frames to go back to", "--overwrite")
    run("detect", "rtsp://camera/live", "--output", "faces.jsonl", "--resume", status=2)


def test_no_source_at_all(run):
    assert "--camera N" in run("detect", status=2).stderr


@pytest.mark.parametrize("option", ["--fps", "--every"])
def test_options_for_frames_without_a_video_are_noted(run, write_grey, option):
    write_grey("in/a.png")
    result = run("detect", "in", option, 2)
    assert result.stderr == f"pyface: {option} has no effect, since none of the sources is a video\n"
    assert len(result.stdout.splitlines()) == 1
