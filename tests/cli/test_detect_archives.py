"""`pyface detect` on archives of images: their lines, copies and crops, shards and resuming, and damaged archives."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

import pyface
from pyface.io.sources import is_in_shard


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.fixture
def members(write_grey):
    """WebDataset's layout: samples of an image and the files about it."""
    levels = {"000.jpg": 40, "000.json": None, "sub/001.png": 80, "sub/001.cls": None, "./sub/002.png": 0}
    return {
        name: b"{}" if level is None else write_grey(f"members/{name}", level).read_bytes()
        for name, level in levels.items()
    }


@pytest.fixture(params=["photos.tar", "photos.tgz", "photos.tar.gz", "photos.tar.xz", "photos.zip"])
def photos(request, members, tmp_path):
    if request.param.endswith(".zip"):
        write_zip(tmp_path / request.param, members)
    else:
        compression = {".tar": "", ".xz": ":xz"}.get(Path(request.param).suffix, ":gz")
        write_tar(tmp_path / request.param, members, f"w{compression}")
    return request.param


def test_lines_copies_and_crops(run, photos, write_grey):
    write_grey("z.png", 120)
    result = run("detect", photos, "z.png", "--save", "out", "--crops", "faces", "--crop-margin", 0)
    lines = lines_of(result.stdout)
    names = [f"{photos}/000.jpg", f"{photos}/sub/001.png", f"{photos}/sub/002.png"]
    assert [line["source"] for line in lines] == [*names, "z.png"]
    assert [len(line["faces"]) for line in lines] == [1, 2, 0, 3]
    assert sorted(path.as_posix() for path in Path("out").rglob("*.*g")) == [
        f"out/{name}" for name in [*names, "z.png"]
    ]
    crops = [face["crop"] for line in lines for face in line["faces"]]
    assert crops[:3] == [str(Path(f"faces/{name}.png")) for name in (f"{names[0]}-0", f"{names[1]}-0", f"{names[1]}-1")]
    assert all(Path(crop).is_file() for crop in crops)


def test_covered_copies_keep_metadata(run, members, tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x010F] = "A camera"
    encoded = io.BytesIO()
    Image.new("RGB", (48, 32), (80, 80, 80)).save(encoded, "JPEG", exif=exif)
    write_tar(tmp_path / "a.tar", {"a.jpg": encoded.getvalue()})
    write_zip(tmp_path / "a.zip", {"a.jpg": encoded.getvalue()})
    run("detect", "a.tar", "a.zip", "--save", "out", "--box")
    for archive in ("a.tar", "a.zip"):
        assert Image.open(f"out/{archive}/a.jpg").getexif()[0x010F] == "A camera"


def test_a_part_of_an_archive(run, photos):
    assert [line["source"] for line in lines_of(run("detect", photos, "--glob", "*.png").stdout)] == [
        f"{photos}/sub/001.png",
        f"{photos}/sub/002.png",
    ]
    result = run("detect", photos, "--exclude", "sub/*")
    assert [line["source"] for line in lines_of(result.stdout)] == [f"{photos}/000.jpg"]
    assert "leave no images" in run("detect", photos, "--exclude", "photos.*", status=2).stderr


def test_an_archive_is_in_one_shard(run, members, tmp_path):
    for k in range(8):
        write_tar(tmp_path / f"{k}.tar", members)
    parts = [lines_of(run("detect", "*.tar", "--shard", f"{k}/2", "--save", "out").stdout) for k in (1, 2)]
    names = [[line["source"] for line in part] for part in parts]
    assert sorted(names[0] + names[1]) == [line["source"] for line in lines_of(run("detect", "*.tar").stdout)]
    assert all(is_in_shard(name.split("/")[0], (k, 2)) for k, part in enumerate(names, 1) for name in part)
    assert len(list(Path("out").rglob("*.*g"))) == 24


def test_resume_after_any_cut(run, members, tmp_path, write_grey):
    write_tar(tmp_path / "a.tar", members | {"bad.png": b"words " * 9})
    write_zip(tmp_path / "b.zip", {"x.png": members["000.jpg"], "X.png": members["sub/001.png"]})
    write_grey("c.png", 40)
    whole_tar = Path("a.tar").read_bytes()
    Path("d.tar").write_bytes(whole_tar[: members["000.jpg"].__len__() + 2048])
    command = ["detect", "a.tar", "b.zip", "c.png", "d.tar", "--save", "out", "--output"]
    run(*command, "whole.jsonl", status=1)
    copies = {path: path.read_bytes() for path in Path("out").rglob("*.png")}
    whole = Path("whole.jsonl").read_bytes()
    for length in [*range(0, len(whole), 477), len(whole)]:
        Path("part.jsonl").write_bytes(whole[:length])
        for path in Path("out").rglob("*.png"):
            path.unlink()
        run(*command, "part.jsonl", "--resume", status=1)
        assert Path("part.jsonl").read_bytes() == whole
        again = {path: path.read_bytes() for path in Path("out").rglob("*.png")}
        assert again.items() <= copies.items()


def test_resume_tries_archives_again_that_could_not_be_opened(run, members, tmp_path, write_grey):
    Path("a.tar").write_text("words " * 200)
    write_grey("b.png")
    write_tar(tmp_path / "cut.tar", members)
    Path("cut.tar").write_bytes(Path("cut.tar").read_bytes()[: len(members["000.jpg"]) + 2048])
    command = ["detect", "a.tar", "b.png", "cut.tar", "--output"]
    run(*command, "part.jsonl", status=1)
    write_tar(tmp_path / "a.tar", members)
    run(*command, "part.jsonl", "--resume", status=1)
    run(*command, "whole.jsonl", status=1)
    assert Path("part.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_damaged_archives_are_reported_and_the_run_continues(run, members, tmp_path, write_grey):
    image = members["sub/001.png"]
    write_tar(tmp_path / "whole.tar", {f"{k}.png": image for k in range(4)})
    content = Path("whole.tar").read_bytes()
    Path("cut.tar").write_bytes(content[: 2 * (512 + (len(image) + 511) // 512 * 512)])  # between two images
    Path("within.tar").write_bytes(content[: 512 + len(image) // 2])
    Path("words.tar").write_text("words " * 200)
    write_zip(tmp_path / "cut.zip", {"a.png": image})
    Path("cut.zip").write_bytes(Path("cut.zip").read_bytes()[:-30])
    write_tar(tmp_path / "none.tar", {"a.json": b"{}"})
    write_grey("z.png", 80)
    archives = ["cut.tar", "within.tar", "words.tar", "cut.zip", "none.tar", "gone.tar"]
    result = run("detect", *archives, "z.png", "--save", "out", status=1)
    lines = lines_of(result.stdout)
    assert [line["source"] for line in lines] == ["cut.tar/0.png", "cut.tar/1.png", *archives, "z.png"]
    assert [len(line["faces"]) for line in lines] == [2, 2, *[0] * 6, 2]
    assert [line["error"] for line in lines[2:-1]] == [
        "cut.tar breaks off after 2 images (its end marker is missing)",
        "within.tar breaks off after 0 images (unexpected end of data)",
        "words.tar cannot be read as an archive (invalid header)",
        "cut.zip cannot be read as an archive (File is not a zip file)",
        "none.tar has no images",
        "gone.tar cannot be read as an archive (No such file or directory)",
    ]
    assert "6 faces in 3 images, 6 archives could not be read" in result.stderr
    with pytest.raises(pyface.ArchiveError, match=r"^z\.png is not a \.tar or \.zip file$"):
        next(pyface.archive("z.png"))


def test_hostile_members_are_reported_and_the_run_continues(run, members, tmp_path):
    image = members["sub/001.png"]
    bomb = image + bytes(2**26 + 16 * 2000)
    hostile = {
        "../up.png": "its path leads out of the archive",
        "a/../../up.png": "its path leads out of the archive",
        "/abs.png": "its path leads out of the archive",
        f"{'n' * 250}.png": "its name has more than 200 bytes",
        "video.mp4": "videos in archives are not read",
        "words.png": "words.png: ",
        "bomb.png": "raise max_pixels",
        "zeros.png": "zeros.png: ",
    }
    contents = {"words.png": b"words " * 9, "bomb.png": bomb, "zeros.png": bytes(2**20)}
    everything = {name: contents.get(name, image) for name in hostile} | {"z.png": image}
    write_tar(tmp_path / "in.tgz", everything, "w:gz")
    write_zip(tmp_path / "in.zip", everything)
    for archive in ("in.tgz", "in.zip"):
        before = set(tmp_path.parent.rglob("*"))
        lines = lines_of(run("detect", archive, "--save", "out/x", "--max-pixels", 2000, status=1).stdout)
        assert [line["source"] for line in lines] == [f"{archive}/{name}" for name in everything]
        for line, words in zip(lines, hostile.values(), strict=False):
            assert words in line["error"]
        assert len(lines[-1]["faces"]) == 2
        new = set(tmp_path.parent.rglob("*")) - before
        assert {path.name for path in new if path.is_file()} - {".pyface"} == {"z.png"}


def test_encrypted_and_damaged_zip_members(run, members, tmp_path):
    image = members["sub/001.png"]
    write_zip(tmp_path / "a.zip", {"secret.png": image, "damaged.png": image, "whole.png": image})
    data = bytearray(Path("a.zip").read_bytes())
    with zipfile.ZipFile("a.zip") as archive:
        start = archive.getinfo("damaged.png").header_offset + 30 + len("damaged.png")
    data[start + 40 : start + 60] = bytes(20)
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # general purpose bit 0 of the first member
        data[data.index(header) + flags] |= 1
    Path("a.zip").write_bytes(data)
    lines = lines_of(run("detect", "a.zip", status=1).stdout)
    assert lines[0]["error"] == "a.zip/secret.png: it is encrypted; unpack the archive with its password"
    assert lines[1]["error"].startswith("a.zip/damaged.png: ")
    assert len(lines[2]["faces"]) == 2


def test_one_name_twice(run, members, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("a.png", "A.png", "a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(members["sub/001.png"])
            archive.addfile(info, io.BytesIO(members["sub/001.png"]))
    lines = lines_of(run("detect", "a.tar", "--save", "out", status=1).stdout)
    assert [line["error"] for line in lines] == [
        None,
        None,
        "a.tar/a.png: the archive has this name twice; rename one of the two",
    ]
    assert sorted(path.name for path in Path("out/a.tar").iterdir()) == ["A (2).png", "a.png"]


def test_archives_in_folders_are_counted_only(run, members, tmp_path, write_grey, assert_one_sentence):
    write_grey("in/a.png")
    write_tar(tmp_path / "in/b.tar", members)
    result = run("detect", "in")
    assert [line["source"] for line in lines_of(result.stdout)] == [os.path.join("in", "a.png")]
    assert result.stderr == "pyface: skipped 1 .tar (name them to read the images in them)\n"


def test_files_that_an_archive_skips_are_reported(run, members, tmp_path):
    write_tar(tmp_path / "a.tar", members | {"b.cr2": b"raw"})
    assert "pyface: a.tar: skipped 1 .cr2 (develop raw files" in run("detect", "a.tar").stderr
