"""`pyface detect --format`: every format is read back by a program that takes it."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pyface.data.annotations import annotated_image
from pyface.data.coco import read_coco
from pyface.data.folder import read_folder


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def photos(write_grey):
    """Images with 2, 0 and 1 faces, and two that cannot be read."""
    write_grey("in/a.png", 80)
    write_grey("in/b.png", 0)
    write_grey("in/sub/c.jpg", 40, 64, 48)
    Path("in/empty.png").write_bytes(b"")
    return ["in", "-r"]


@pytest.fixture
def lines(run, photos):
    """What a run without --format prints of the images that can be read."""
    return [line for line in lines_of(run("detect", *photos, status=1).stdout) if line["error"] is None]


def boxes_of(line):
    return [face["box"] for face in line["faces"]]


def test_coco(run, photos, lines):
    """faster-coco-eval, which has pycocotools' interface, finds the boxes equal to those of the lines."""
    coco = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    result = run("detect", *photos, "--format", "coco", "--output", "out/faces.json", status=1)
    assert "pyface: in/empty.png: the file is empty" in result.stderr
    truth = coco.COCO("out/faces.json")
    images = truth.loadImgs(truth.getImgIds())
    assert [(image["file_name"], image["width"], image["height"]) for image in images] == [
        (line["source"], line["width"], line["height"]) for line in lines
    ]
    for image, line in zip(images, lines, strict=True):
        found = truth.loadAnns(truth.getAnnIds(imgIds=image["id"]))
        assert [[*row["bbox"][:2], *np.add(row["bbox"][:2], row["bbox"][2:])] for row in found] == boxes_of(line)
        assert [row["score"] for row in found] == [face["score"] for face in line["faces"]]
        assert [row["keypoints"][:3] for row in found] == [[*face["landmarks"][0], 2] for face in line["faces"]]
    measured = coco.COCOeval_faster(truth, truth.loadRes(truth.dataset["annotations"]), "bbox")
    measured.run()
    assert measured.stats[0] == pytest.approx(1)
    pictures = [annotated_image(image.path, image.boxes) for image in read_coco(Path("out/faces.json"), Path())]
    assert [picture.faces.tolist() for picture in pictures] == [boxes_of(line) for line in lines]
    assert sorted(path.name for path in Path("out").iterdir()) == ["faces.json"]


def test_yolo(run, photos, lines):
    result = run("detect", *photos, "--format", "yolo", "--output", "data", status=1)
    assert "pyface: in/empty.png: the file is empty" in result.stderr
    labels = sorted(path.relative_to("data").as_posix() for path in Path("data").rglob("*.txt"))
    assert labels == ["labels/a.txt", "labels/b.txt", "labels/sub/c.txt"]
    Path("in").rename("data/images")
    Path("data/images/empty.png").unlink()
    for picture, line in zip(read_folder("data"), lines, strict=True):
        assert picture.faces.reshape(-1, 4) == pytest.approx(np.array(boxes_of(line)).reshape(-1, 4), abs=1e-5)
        points = [face["landmarks"] for face in line["faces"]]
        assert picture.landmarks.reshape(-1, 5, 2) == pytest.approx(np.array(points).reshape(-1, 5, 2), abs=1e-5)


def test_yolo_in_supervision(run, photos, lines):
    """supervision reads the boxes; its reader takes files of boxes without landmarks only, so these are removed."""
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    run("detect", *photos, "--format", "yolo", "--output", "data", status=1)
    for path in Path("data").rglob("*.txt"):
        path.write_text("".join(" ".join(row.split()[:5]) + "\n" for row in path.read_text().splitlines()))
    Path("in/empty.png").unlink()
    Path("data/data.yaml").write_text("names: [face]\nnc: 1\n")
    images, labels = Path("in"), Path("data/labels")
    read = supervision.DetectionDataset.from_yolo(str(images), str(labels), "data/data.yaml")
    found = {Path(name).name: annotations.xyxy for name, _, annotations in read}
    assert found["a.png"] == pytest.approx(np.array(boxes_of(lines[0])), abs=1e-3)


def test_boxes_beyond_the_image_are_cut(run, write_grey, fake_model, monkeypatch):
    import torch

    from pyface.models.base import Faces

    write_grey("in/a.png", 80)
    points = torch.tensor([[[-5.0, 3], [9, 3], [6, 6], [3, 9], [9, 40]]])
    faces = Faces(torch.tensor([[-10.0, -5, 24, 40]]), torch.tensor([0.5]), points)
    monkeypatch.setattr(fake_model, "faces", lambda image, threshold: faces)
    run("detect", "in", "--format", "yolo", "--output", "data")
    numbers = list(map(float, Path("data/labels/a.txt").read_text().split()))
    assert numbers[:5] == [0, 0.25, 0.5, 0.5, 1]
    assert numbers[5::3] == pytest.approx([0, 9 / 48, 6 / 48, 3 / 48, 0], abs=1e-6)
    assert numbers[7::3] == [0, 2, 2, 2, 0]


def test_two_images_with_one_label_file(run, write_grey, assert_one_sentence):
    write_grey("in/a.png", 80)
    write_grey("in/a.jpg", 40)
    result = run("detect", "in", "--format", "yolo", "--output", "data", status=2)
    assert_one_sentence(
        result, "data/labels/a.txt would hold the labels of both in/a.jpg and in/a.png; rename one of them"
    )


def test_yolo_labels_of_an_archive(run, write_grey, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("a/1.png", "a/2.png"):
            data = write_grey("1.png", 80).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    run("detect", "x.tar", "--format", "yolo", "--output", "data")
    assert sorted(path.as_posix() for path in Path("data").rglob("*.txt")) == [
        "data/labels/x.tar/a/1.txt",
        "data/labels/x.tar/a/2.txt",
    ]


def test_parquet(run, photos):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    run("detect", *photos, "--output", "faces.csv", status=1)
    run("detect", *photos, "--output", "faces.parquet", status=1)
    import csv

    with open("faces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table("faces.parquet").to_pylist()
    assert len(rows) == len(table) == 5
    for row, expected in zip(table, rows, strict=True):
        assert list(row) == list(expected)
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(float(expected[name]), rel=1e-6)
            else:
                assert ("" if value is None else str(value)) == expected[name]
    assert isinstance(table[0]["x1"], float)
    assert isinstance(table[0]["width"], int)
    assert not Path("faces.parquet.part").exists()


def test_parquet_in_several_parts(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    from pyface.io import results

    monkeypatch.setattr(results, "_ROWS_AT_ONCE", 4)
    with results.ParquetFile(tmp_path / "a.parquet") as file:
        for k in range(10):
            file.write(results.failed(f"{k}\udcff.jpg", "because"))
    table = parquet.read_table(tmp_path / "a.parquet")
    assert [name[0] for name in table["source"].to_pylist()] == [str(k) for k in range(10)]
    assert parquet.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3


def test_label_studio(run, photos, lines):
    """The tasks have what labelstud.io/guide/predictions asks for, in percent of the image."""
    run("detect", *photos, "--format", "labelstudio", "--output", "tasks.json", status=1)
    tasks = json.loads(Path("tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d={line['source']}" for line in lines]
    for task, line in zip(tasks, lines, strict=True):
        [prediction] = task["predictions"]
        assert prediction["model_version"] == "s3fd_lite"
        assert prediction["score"] == max((face["score"] for face in line["faces"]), default=0)
        assert len({region["id"] for region in prediction["result"]}) == len(line["faces"])
        for region, face in zip(prediction["result"], line["faces"], strict=True):
            fixed = {key: region[key] for key in ("type", "from_name", "to_name", "image_rotation", "score")}
            assert fixed == {
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "image_rotation": 0,
                "score": face["score"],
            }
            width, height, value = region["original_width"], region["original_height"], region["value"]
            assert (width, height) == (line["width"], line["height"])
            assert (value["rotation"], value["rectanglelabels"]) == (0, ["face"])
            box = [value["x"] * width, value["y"] * height, value["width"] * width, value["height"] * height]
            x1, y1, x2, y2 = face["box"]
            assert np.array(box) / 100 == pytest.approx([x1, y1, x2 - x1, y2 - y1])


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_formats_of_any_name(run, photos, form):
    run("detect", *photos, "--output", f"by_ending.{form}", status=1)
    run("detect", *photos, "--output", "any.txt", "--format", form, status=1)
    assert Path("any.txt").read_bytes() == Path(f"by_ending.{form}").read_bytes()
    run("detect", *photos, "--output", "any.txt", "--format", form, "--resume", status=1)


def test_frames_and_tracks(run, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    pytest.importorskip("trackers", reason="trackers is not installed")
    from pyface.io.video import VideoWriter

    with VideoWriter(tmp_path / "video.mp4") as writer:
        for k in range(3):
            writer.write(np.full((32, 48, 3), 80, np.uint8), k / 4)
    run("detect", "video.mp4", "--format", "coco", "--output", "a.json", "--track")
    content = json.loads(Path("a.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"video.mp4-00000{k}" for k in range(3)]
    run("detect", "video.mp4", "--format", "yolo", "--output", "data")
    assert sorted(path.name for path in Path("data/labels").iterdir()) == [f"video.mp4-00000{k}.txt" for k in range(3)]


def test_an_interrupted_run_leaves_a_whole_file(run, photos, fake_model, monkeypatch):
    def detect(images, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake_model, "detect", detect)
    result = run("detect", *photos, "--format", "coco", "--output", "faces.json", status=130)
    assert "--resume" not in result.stderr
    assert json.loads(Path("faces.json").read_text())["annotations"] == []
    assert not Path("faces.json.part").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "coco"], ["--format coco needs a file of results; add --output FILE"]),
        (
            ["--format", "coco", "--output", "x.json", "--resume"],
            ["--resume continues jsonl and csv files, got --format"],
        ),
        (["--output", "x.parquet", "--resume"], ["got --format parquet"]),
        (["--output", "x.json"], ["must end with .jsonl, .csv or .parquet", "--format coco"]),
        (["--format", "coco", "--output", "there.json"], ["there.json already exists; --overwrite replaces it"]),
        (["--format", "coco", "--output", "there.json/x.json"], ["there.json/x.json cannot be written"]),
        (
            ["--format", "yolo", "--output", "data"],
            ["labels already exists, and --overwrite replaces only files"],
        ),
        (["--format", "yolo", "--output", "in/a.png"], ["--output must be a folder", "got the file in/a.png"]),
        (["--format", "labelstudio", "--output", "x.json", "video.mp4"], ["is for images, got the video video.mp4"]),
    ],
)
def test_mistakes_are_one_sentence(run, photos, arguments, words, assert_one_sentence):
    Path("there.json").write_text("{}")
    Path("data/labels").mkdir(parents=True)
    Path("video.mp4").write_bytes(b"")
    assert_one_sentence(run("detect", "in/a.png", *arguments, status=2), *words)


def test_without_pyarrow(run, photos, monkeypatch, assert_one_sentence):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    result = run("detect", "in/a.png", "--output", "x.parquet", status=2)
    assert_one_sentence(result, 'Parquet files need pyarrow: pip install "pyface-engine[parquet]"')


@pytest.mark.parametrize(
    ("name", "form"), [("a.jsonl", "csv"), ("a.csv", "coco"), ("a.PARQUET", "jsonl"), ("a.json", "csv")]
)
def test_a_format_that_contradicts_the_suffix(run, write_grey, assert_one_sentence, name, form):
    write_grey("a.png")
    result = run("detect", "a.png", "--output", name, "--format", form, status=2)
    assert_one_sentence(result, f"--format {form} contradicts the suffix of {name}; change one of the two")
