"""Which pictures a command line means, and where their drawn copies go."""

import os
from pathlib import Path

import pytest

from pyface.io.sources import SourceError, find_sources, plan_copies


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
    assert found("in", recursive=True, skip=Path("in/sub/deep"))[2:] == ["in/sub/c.png"]
    assert found("in/*.jpg") == ["in/a.jpg"]
    assert found("in/**/*.png") == ["in/sub/c.png", "in/sub/deep/d.png"]
    assert found("in/su?") == ["in/sub/c.png"]
    assert found("photo [1].jpg") == ["photo [1].jpg"]
    assert found("in/notes.txt") == ["in/notes.txt"]  # named by the user
    assert found("in/b.PNG", "in", "./in/a.jpg") == ["in/b.PNG", "in/a.jpg"]
    with pytest.raises(SourceError, match="no such file"):
        find_sources(["in/nothing"])
    assert found("in/nothing", "in/a.jpg", "http://x/?y") == ["in/nothing", "in/a.jpg", "http://x/?y"]


def test_copies():
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
    with pytest.raises(SourceError, match="overwrite the picture"):
        plan("out/x.jpg", "out/y.jpg")
