"""`pyface detect` with covered faces and crops, on photos and videos."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pyface.detections import Detections
from pyface.io.images import read_image


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def write_noise(tmp_path):
    """Writes a noisy photo with two fake faces, whose boxes begin at (0, 0) and (1, 1), and returns its pixels."""

    def write(name, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 161, (200, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return read_image(path)

    return write


@pytest.fixture
def write_video(tmp_path):
    """Writes a video of noisy frames with two fake faces each."""
    pytest.importorskip("av", reason="PyAV is not installed")
    from pyface.io.video import VideoWriter

    def write(name, frames=3):
        rng = np.random.default_rng(0)
        with VideoWriter(tmp_path / name) as writer:
            for k in range(frames):
                small = rng.integers(0, 161, (25, 38, 3), dtype=np.uint8)  # coarse noise, which H.264 keeps
                writer.write(np.ascontiguousarray(small.repeat(8, 0).repeat(8, 1)[:200, :300]), k / 4)

    return write


def spread_within(image, size=20):
    """How much pixels differ from their neighbours where the fake faces are."""
    return float(np.abs(np.diff(image[10 : 10 + size, 10 : 10 + size].astype(float), axis=0)).mean())


@pytest.mark.parametrize("how", ["--blur", "--pixelate", "--box"])
def test_covered_photos(run, write_noise, how):
    original = write_noise("in/a.png")
    (line,) = lines_of(run("detect", "in", "--save", "out", how).stdout)
    assert len(line["faces"]) == 2
    copy = read_image("out/a.png")
    x1, y1, x2, y2 = (round(v) for v in line["faces"][0]["box"])
    assert (copy[y1:y2, x1:x2] != original[y1:y2, x1:x2]).any(2).mean() > 0.98
    assert spread_within(copy) < spread_within(original) / 5
    np.testing.assert_array_equal(copy[120:], original[120:])
    np.testing.assert_array_equal(copy[:, 180:], original[:, 180:])


def test_metadata_of_photos(run, write_noise):
    block = Image.Exif()
    block[0x0112] = 6
    block[0x8825] = {1: "N", 2: (48.0, 8.0, 14.0)}
    write_noise("in/a.jpg", exif=block)
    run("detect", "in", "--save", "kept", "--blur")
    run("detect", "in", "--save", "stripped", "--blur", "--strip-gps")
    for folder, gps in (("kept", True), ("stripped", False)):
        exif = Image.open(f"{folder}/a.jpg").getexif()
        assert exif[0x0112] == 6
        assert bool(exif.get_ifd(0x8825)) is gps
        assert read_image(f"{folder}/a.jpg").shape == (300, 200, 3)
        assert spread_within(read_image(f"{folder}/a.jpg")) < 10  # the upright corner, where the faces were found


def test_a_photo_that_cannot_be_read_has_no_copy(run, write_noise, tmp_path):
    write_noise("in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"words words words words words words")
    run("detect", "in", "--save", "out", "--blur", "--crops", "crops", status=1)
    assert sorted(path.name for path in Path("out").iterdir()) == [".pyface", "a.png"]


def test_covered_videos(run, write_video):
    from pyface.io.video import video

    write_video("video.mp4")
    run("detect", "video.mp4", "--save", "out", "--pixelate")
    frames = zip(video("video.mp4"), video("out/video.mp4"), strict=True)
    for (_, original), (_, copy) in frames:
        difference = np.abs(original[..., 1].astype(int) - copy[..., 1])
        assert difference[:90, :140].mean() > 15
        assert difference[125:, 200:].mean() < 8


def test_aligned_crops(run, write_noise):
    image = write_noise("in/sub/a.png")
    write_noise("in/a.png")
    lines = lines_of(run("detect", "in", "-r", "--crops", "crops").stdout)
    names = [[Path(face["crop"]).as_posix() for face in line["faces"]] for line in lines]
    assert names == [["crops/a.png-0.png", "crops/a.png-1.png"], ["crops/sub/a.png-0.png", "crops/sub/a.png-1.png"]]
    assert {path.as_posix() for path in Path("crops").rglob("*.png")} == {name for line in names for name in line}
    chips = Detections.from_dict(lines[1]).align(image)
    for name, chip in zip(names[1], chips, strict=True):
        np.testing.assert_array_equal(read_image(name), chip)
        assert chip.shape == (112, 112, 3)


def test_plain_crops(run, write_noise):
    image = write_noise("a.jpg")
    (line,) = lines_of(run("detect", "a.jpg", "--crops", "crops", "--crop-margin", 0.2).stdout)
    for face, crop in zip(line["faces"], Detections.from_dict(line).crop(image, 0.2), strict=True):
        np.testing.assert_array_equal(read_image(face["crop"]), crop)


def test_crops_of_videos(run, write_video):
    write_video("video.mp4")
    run("detect", "video.mp4", "--crops", "crops", "--every", 2, "--output", "faces.csv")
    with open("faces.csv", newline="") as file:
        crops = [row["crop"] for row in csv.DictReader(file)]
    assert [Path(crop).name for crop in crops] == [f"video.mp4-{frame:06}-{k}.png" for frame in (0, 2) for k in (0, 1)]
    assert all(cv2.imread(crop).shape == (112, 112, 3) for crop in crops)


def test_crops_within_the_sources_are_not_read_again(run, write_noise):
    write_noise("in/a.png")
    for _ in range(2):
        assert len(lines_of(run("detect", "in", "-r", "--crops", "in/crops").stdout)) == 1


def test_a_face_whose_landmarks_coincide_has_no_aligned_crop(run, write_noise, fake_model, monkeypatch):
    write_noise("a.png")
    real = fake_model.faces
    monkeypatch.setattr(
        fake_model, "faces", lambda *given: real(*given)._replace(landmarks=real(*given).landmarks * 0 + 5)
    )
    (line,) = lines_of(run("detect", "a.png", "--crops", "crops").stdout)
    assert [face["crop"] for face in line["faces"]] == [None, None]


def test_detectors_without_landmarks(run, write_noise, fake_model, assert_one_sentence):
    write_noise("a.png")
    fake_model.landmarks = False
    result = run("detect", "a.png", "--crops", "crops", status=2)
    assert_one_sentence(result, "s3fd_lite returns no landmarks to align faces by", "--crop-margin 0.2")
    run("detect", "a.png", "--crops", "crops", "--crop-margin", 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--save", "out", "--crops", "out/"], ["--save and --crops must be two folders, got out for both"]),
        (["--blur"], ["--blur changes the saved copies; add --save DIR"]),
        (["--blur", "--box", "--save", "out"], ["--blur and --box cannot be combined"]),
        (["--strip-gps", "--save", "out"], ["--strip-gps needs --blur", "--blur"]),
        (["--crop-margin", 0.1], ["--crop-margin needs --crops DIR"]),
        (["--crops", "a.png"], ["a.png: the images cannot be saved there (it is a file; give a folder)"]),
    ],
)
def test_mistakes_are_one_sentence(run, write_noise, arguments, words, assert_one_sentence):
    write_noise("a.png")
    assert_one_sentence(run("detect", "a.png", *arguments, status=2), *words)


@pytest.mark.parametrize("options", [["--save"], ["--save", "out", "--blur", "--save"], ["--crops"]])
def test_only_files_in_folders_that_pyface_made_are_replaced(run, write_noise, tmp_path, options):
    for name in ("in/a.png", "in/b.png"):
        write_noise(name)
    run("detect", "in", *options, "own")
    written = {path: path.read_bytes() for path in Path("own").glob("*.png")}
    Path("mine").mkdir()
    kept = sorted(written)[0].name
    for folder in ("own", "mine"):
        Path(folder, kept).write_bytes(b"somebody's photo")
    run("detect", "in", *options, "own")
    assert {path: path.read_bytes() for path in Path("own").glob("*.png")} == written
    lines = lines_of(run("detect", "in", *options, "mine", status=1).stdout)
    assert [line["error"] for line in lines] == [
        f"mine/{kept} cannot be written (File exists); move what is there, or choose another folder", None
    ]  # fmt: skip
    assert Path("mine", kept).read_bytes() == b"somebody's photo"
    assert {path.name for path in Path("mine").glob("b*")} == {path.name for path in written if path.name[0] == "b"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_faces_are_kept_if_a_copy_cannot_be_written(run, write_noise, suffix):
    write_noise("in/a.png")
    Path("mine").mkdir()
    Path("mine/a.png").write_bytes(b"somebody's photo")
    options = ["--format", "coco"] if suffix == "json" else []
    arguments = ("detect", "in", "--save", "mine", *options, "--output", f"out.{suffix}")
    result = run(*arguments, status=1)
    faces = len(lines_of(run("detect", "in").stdout)[0]["faces"])
    assert faces
    assert f"{faces} faces in 1 image, 1 copy could not be written" in result.stderr
    if suffix == "json":
        assert len(json.loads(Path("out.json").read_text())["annotations"]) == faces
        return
    text = Path(f"out.{suffix}").read_text()
    if suffix == "jsonl":
        [line] = lines_of(text)
        assert len(Detections.from_dict(line)) == faces
        assert line["error"].startswith("mine/a.png cannot be written")
    else:
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["score"] != "" and "mine/a.png cannot be written" in row["error"] for row in rows] == [True] * faces
    assert "0 faces in 0 images, 1 done before, 1 of them with errors" in run(*arguments, "--resume", status=1).stderr


def test_a_run_that_continues_replaces_its_own_copies(run, write_noise):
    Path("mine").mkdir()
    Path("mine/words.txt").write_text("not pyface's")
    write_noise("in/a.png")
    write_noise("in/b.png")
    arguments = ("detect", "in", "--save", "mine", "--output", "faces.jsonl")
    run(*arguments)
    results = Path("faces.jsonl").read_text()
    Path("faces.jsonl").write_text(results.splitlines(keepends=True)[0])  # killed after the second copy
    run(*arguments, "--resume")
    assert Path("faces.jsonl").read_text() == results
    run(*arguments, "--overwrite", status=1)


@pytest.mark.parametrize("link", ["hardlink_to", "symlink_to"])
def test_files_that_are_linked_to_a_source(run, write_noise, link):
    write_noise("in/a.png")
    before = Path("in/a.png").read_bytes()
    Path("mine").mkdir()
    getattr(Path("mine/a.png"), link)(Path("in/a.png").absolute())
    run("detect", "in", "--save", "mine", status=1 if link == "hardlink_to" else 2)
    assert Path("in/a.png").read_bytes() == before


def test_crops_that_would_replace_another_source(run, write_noise):
    for name in ("in/a.png", "in/b/a.png-0.png"):
        write_noise(name)
    before = Path("in/b/a.png-0.png").read_bytes()
    sources = ("in/a.png", "in/b/a.png-0.png")
    errors = [line["error"] for line in lines_of(run("detect", *sources, "--crops", "in/b", status=1).stdout)]
    assert errors[0].startswith("in/b/a.png-0.png cannot be written (File exists)")
    assert Path("in/b/a.png-0.png").read_bytes() == before


def test_resume_with_other_crops_is_refused(run, write_noise, assert_one_sentence):
    write_noise("a.png")
    run("detect", "a.png", "--crops", "crops", "--output", "faces.jsonl")
    assert_one_sentence(
        run("detect", "a.png", "--output", "faces.jsonl", "--resume", status=2), "crops crops", "crops not given"
    )
