"""Which images and videos a command line names, and where their copies go."""

import importlib.util
import os
from collections import Counter
from pathlib import Path

import pytest

from pyface.io.sources import SourceError, describe_skipped, find_sources, is_live, is_unclear, is_video, plan_copies


def test_sources(write_grey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.PNG", "in/a.jpg", "in/.hidden.jpg", "in/sub/c.png", "in/sub/deep/d.png", "photo [1].jpg"):
        write_grey(name)
    (tmp_path / "in/notes.txt").write_text("x")
    (tmp_path / "in/.git").mkdir()
    write_grey("in/.git/e.png")

    def found(*arguments, **options):
        return [path.replace(os.sep, "/") for path in find_sources(arguments, **options)]

    assert found("in") == ["in/a.jpg", "in/b.PNG"]
    assert found("in", recursive=True) == ["in/a.jpg", "in/b.PNG", "in/sub/c.png", "in/sub/deep/d.png"]
    assert found("in", recursive=True, skip=[Path("in/sub/deep")])[2:] == ["in/sub/c.png"]
    assert found("in/*.jpg") == ["in/a.jpg"]
    assert found("in/**/*.png") == ["in/sub/c.png", "in/sub/deep/d.png"]
    assert found("in/su?") == ["in/sub/c.png"]
    assert found("photo [1].jpg") == ["photo [1].jpg"]
    assert found("in/notes.txt") == ["in/notes.txt"]  # named by the user
    assert found("in/b.PNG", "in", "./in/a.jpg") == ["in/b.PNG", "in/a.jpg"]
    with pytest.raises(SourceError, match="no such file"):
        find_sources(["in/nothing"])
    assert found("in/nothing", "in/a.jpg", "http://x/?y") == ["in/nothing", "in/a.jpg", "http://x/?y"]


def test_copies(write_grey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def plan(*sources, folder="out"):
        return [path.as_posix() for path in plan_copies(sources, Path(folder)).values()]

    assert plan("a/b/x.jpg") == ["out/x.jpg"]
    assert plan("a/x.jpg", "a/b/x.jpg") == ["out/x.jpg", "out/b/x.jpg"]
    assert plan("a/x.jpg", "b/x.jpg") == ["out/a/x.jpg", "out/b/x.jpg"]
    assert plan("../x.jpg", "x.JPEG")[1].endswith("/x.JPEG")
    assert plan("x.tif", "x.tif.png", "X.TIF") == [
        "out/x.tif.png",
        "out/x.tif (2).png",
        "out/X.TIF (3).png",
    ]
    write_grey("out/x.jpg")
    assert plan("in/x.jpg", "in/y.jpg") == ["out/x.jpg", "out/y.jpg"]  # the copies of an earlier run
    with pytest.raises(SourceError, match=r"overwrite the image out/x\.jpg"):
        plan("out/x.jpg", "out/y.jpg")
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(SourceError, match=r"overwrite the image out/x\.jpg"):
        plan("out/x.jpg", "out/y.jpg", folder="link")


@pytest.mark.parametrize("has_heic", [False, True])
def test_files_that_a_folder_skips_are_counted(write_grey, tmp_path, monkeypatch, has_heic):
    monkeypatch.chdir(tmp_path)
    real = importlib.util.find_spec
    there = {"pillow_heif": has_heic or None, "av": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there[name] if name in there else real(name))
    write_grey("in/a.jpg")
    names = ("b.HEIC", "c.heif", "video.MP4", "video2.mp4", "raw.CR2", "notes.txt", ".hidden.mp4", "sub/d.heic")
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    skipped = Counter()
    found = find_sources(["in"], skipped=skipped)
    assert len(found) == (3 if has_heic else 1)
    heic = {} if has_heic else {".heic": 1, ".heif": 1}
    assert skipped == {".mp4": 2, ".cr2": 1} | heic
    (text,) = describe_skipped(skipped)
    assert '2 .mp4 (pyface detect reads videos after pip install "pyface-engine[video]")' in text
    assert ('1 .heic (pip install "pyface-engine[heic]")' in text) is not has_heic
    skipped.clear()
    find_sources(["in"], recursive=True, skipped=skipped)
    assert skipped[".heic"] == (0 if has_heic else 2)
    skipped.clear()
    assert find_sources(["in/video.MP4"], skipped=skipped) == ["in/video.MP4"]  # named: its own line says why
    assert not skipped
    (tmp_path / "only").mkdir()
    (tmp_path / "only/a.mov").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"only: there are no images in this folder; skipped 1 \.mov \(pyface detect"):
        find_sources(["only"])


def test_videos_and_addresses(write_grey, tmp_path, monkeypatch):
    pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.chdir(tmp_path)
    write_grey("in/b.jpg")
    for name in ("a.MP4", "c.webm", "script.ts", ".hidden.mp4"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert find_sources(["in"]) == [os.path.join("in", "b.jpg")]
    assert find_sources(["in"], videos=True) == [os.path.join("in", name) for name in ("a.MP4", "b.jpg", "c.webm")]
    assert find_sources(["rtsp://user:secret@camera/live"]) == ["rtsp://user:secret@camera/live"]
    assert find_sources(["http://x/a/../b?c=1", "http://x/b?c=1"]) == ["http://x/a/../b?c=1", "http://x/b?c=1"]
    assert is_video("in/script.ts")
    assert not is_video("http://x/a.jpg?b=c.mp4")
    assert [is_live(source) for source in (0, "RTSP://x", "http://x/a.mp4", "a.mp4")] == [True, True, False, False]
    assert find_sources(["http://x/a.jpg", "s3://b/a.jpg"]) == ["http://x/a.jpg", "s3://b/a.jpg"]  # kept as they are
    assert [is_unclear(source) for source in ("http://x/live", "rtsp://x", "s3://b/a", "a")] == [True, *[False] * 3]


def test_copies_of_videos():
    sources = ["in/a.mp4", "in/a.MOV", "rtsp://user:secret@camera:554/live/1", "http://x/video.mp4?key=secret", 3]
    plan = [path.as_posix() for path in plan_copies(sources, Path("out")).values()]
    assert plan == ["out/a.mp4", "out/a.MOV.mp4", "out/camera-live-1.mp4", "out/x-video.mp4", "out/camera 3.mp4"]
    assert plan_copies([0], Path("out")) == {0: Path("out/camera 0.mp4")}


def test_recordings_of_cameras_are_kept(tmp_path):
    for name in ("camera 0.mp4", "camera 0 (2).mp4", "a.mp4"):
        (tmp_path / name).touch()
    plan = plan_copies([0, "elsewhere/a.mp4"], tmp_path)
    assert [path.name for path in plan.values()] == ["camera 0 (3).mp4", "a.mp4"]
