"""`pyface detect` on lists of files, and on some of the files of folders."""

import json
import os
import sys
from pathlib import Path

import pytest

from pyface.io.sources import is_in_shard


def sources_of(result):
    return [Path(json.loads(line)["source"]).as_posix() for line in result.stdout.splitlines()]


@pytest.fixture
def photos(write_grey):
    for name in ("in/a.jpg", "in/b [1].png", "in/line\nbreak.png", "in/sub/c.jpg", "in/sub/c_small.jpg"):
        write_grey(name)


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_lists(run, photos, separator):
    names = [b"in/b [1].png", b"gone.jpg", b"in/*.jpg", b"in/a.jpg", b"in/sub", b"./in/a.jpg"]
    names += [b"in/line\nbreak.png"] if separator == b"\0" else []
    Path("list").write_bytes(separator.join(names) + separator)
    result = run("detect", "--from-file", "list", status=1)
    expected = ["in/b [1].png", "gone.jpg", "in/*.jpg", "in/a.jpg", "in/sub/c.jpg", "in/sub/c_small.jpg"]
    expected += ["in/line\nbreak.png"] if separator == b"\0" else []
    assert sources_of(result) == expected
    assert [json.loads(line)["error"] is None for line in result.stdout.splitlines()[:3]] == [True, False, False]


def test_the_standard_input(run, photos, assert_one_sentence):
    assert sources_of(run("detect", "-", stdin=b"in/a.jpg\nin/sub/c.jpg")) == ["in/a.jpg", "in/sub/c.jpg"]
    names = ["in/sub/c.jpg", "in/line\nbreak.png", "in/a.jpg"]
    assert sources_of(run("detect", "in/sub/c.jpg", "-", stdin="\0".join(names).encode())) == names
    assert_one_sentence(run("detect", "-", stdin=b"", status=2), "standard input: this list names no files")


def test_patterns(run, photos):
    assert sources_of(run("detect", "in", "-r", "--glob", "*.jpg", "--exclude", "*_small.*")) == [
        "in/a.jpg",
        "in/sub/c.jpg",
    ]
    assert sources_of(run("detect", "in", "-r", "--glob", "b*", "--glob", "a*")) == ["in/a.jpg", "in/b [1].png"]
    assert sources_of(run("detect", "in", "-r", "--exclude", "sub/*", "--exclude", "line*")) == [
        "in/a.jpg",
        "in/b [1].png",
    ]


def test_shards(run, write_grey):
    """Every source is in one shard only, whatever else is there, and its copy has the same name as without shards."""
    for k in range(40):
        write_grey(f"in/{k}.png")
        write_grey(f"in/sub{k % 2}/x.bmp")
    whole = sources_of(run("detect", "in", "-r", "--save", "whole"))
    parts = [sources_of(run("detect", "in", "-r", "--shard", f"{k}/3", "--save", "out")) for k in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(whole)
    assert min(map(len, parts)) > 0
    assert {path.relative_to("out") for path in Path("out").rglob("*.png")} == {
        path.relative_to("whole") for path in Path("whole").rglob("*.png")
    }
    write_grey("in/0a.png")
    again = sources_of(run("detect", "./in", "-r", "--shard", "1/3"))
    assert [name for name in again if name != "in/0a.png"] == parts[0]


def test_resume_within_a_shard(run, write_grey):
    for k in range(12):
        write_grey(f"in/{k}.png")
    for part in ("1/2", "2/2"):
        name = f"{part[0]}.jsonl"
        run("detect", "in", "--shard", part, "--output", name)
        whole = Path(name).read_bytes()
        Path(name).write_bytes(whole[: len(whole) // 2])
        run("detect", "in", "--shard", part, "--output", name, "--resume")
        assert Path(name).read_bytes() == whole
    lines = [json.loads(line) for name in ("1.jsonl", "2.jsonl") for line in Path(name).read_text().splitlines()]
    assert sorted(line["source"] for line in lines) == sorted(os.path.join("in", f"{k}.png") for k in range(12))


def test_an_empty_shard(run, write_grey):
    write_grey("a.png")
    empty = next(k for k in (1, 2) if not is_in_shard("a.png", (k, 2)))
    assert sources_of(run("detect", "a.png", "--shard", f"{empty}/2")) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text")
def test_names_that_are_not_text(run, write_grey):
    write_grey("in/\udcff.png")
    Path("list").write_bytes(b"in/\xff.png\n")
    assert len(run("detect", "--from-file", "list", "--shard", "1/1").stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from-file", "gone"], ["gone: the list cannot be read (No such file or directory)"]),
        (["--from-file", "empty"], ["empty: this list names no files"]),
        (["-", "--from-file", "empty"], ["--from-file and - are both lists of files"]),
        (["in", "--glob", "*.gif"], ["--glob and --exclude leave no images or videos"]),
        (["in", "--shard", "0/3"], ["--shard must be I/N with I from 1 to N, such as 2/8, got 0/3"]),
        (["in", "--shard", "4/3"], ["got 4/3"]),
        (["in", "--shard", "a"], ["got a"]),
    ],
)
def test_mistakes_are_one_sentence(run, photos, arguments, words, assert_one_sentence):
    Path("empty").write_bytes(b"\n\n")
    assert_one_sentence(run("detect", *arguments, status=2), *words)
