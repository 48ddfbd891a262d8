"""Data folders in three formats: what is read, what is written, and that each is the same after a round trip."""

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pyface.cli import app
from pyface.data.annotations import DatasetError
from pyface.data.folder import annotations_in, read_folder, unlisted, write_folder

SIZES = {"a.jpg": (100, 200), "event/b.png": (50, 40), "c.jpg": (30, 30)}


@pytest.fixture
def folder(tmp_path):
    for name, (height, width) in SIZES.items():
        path = tmp_path / "source" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
    return tmp_path / "source"


def write_coco(folder, annotations, categories=({"id": 7, "name": "face"},), images=None):
    named = images or [{"id": k, "file_name": name} for k, name in enumerate(SIZES)]
    text = json.dumps({"images": named, "annotations": annotations, "categories": list(categories)})
    (folder / "boxes.json").write_text(text)


def annotation(**of):
    return {"id": 1, "image_id": 0, "category_id": 7, "bbox": [10, 20, 30, 40]} | of


def test_coco(folder):
    keypoints = [1, 2, 2, 3, 4, 1, 0, 0, 0, 7, 8, 2, 9, 10, 2]
    write_coco(
        folder,
        [
            annotation(keypoints=keypoints),
            annotation(bbox=[1, 2, 3, 4], iscrowd=1),
            annotation(image_id=1, bbox=[5, 5, 0, 9]),
            annotation(image_id=1, bbox=[0.5, 0.5, 9.5, 9.5], keypoints=[1, 1, 2] * 17),
            annotation(image_id=2, category_id=3),
        ],
        categories=({"id": 7, "name": "Face"}, {"id": 3, "name": "car"}),
    )
    a, b, c = read_folder(folder)
    assert a.path == folder / "images" / "a.jpg"
    assert a.faces.tolist() == [[10, 20, 40, 60]]
    assert a.ignore.tolist() == [[1, 2, 4, 6]]
    assert a.landmarks[0, [0, 1, 3, 4]].tolist() == [[1, 2], [3, 4], [7, 8], [9, 10]]
    assert np.isnan(a.landmarks[0, 2]).all()
    assert b.faces.tolist() == [[0.5, 0.5, 10, 10]]
    assert np.isnan(b.landmarks).all()
    assert len(c.faces) == 0


def test_one_category_is_faces_whatever_its_name(folder):
    write_coco(folder, [annotation()], categories=({"id": 7, "name": "person"},))
    assert len(read_folder(folder)[0].faces) == 1


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ([annotation(bbox=[1, 2, 3])], "annotation 1: `bbox` must be four numbers, x y w h, got \\[1, 2, 3\\]"),
        ([annotation(bbox=[1, 2, "3", 4])], "must be four numbers"),
        ([annotation(bbox=[1, 2, float("nan"), 4])], "must be four numbers"),
        ([annotation(keypoints="no")], "`keypoints` must be numbers"),
        ([annotation(bbox=[10**400, 2, 3, 4])], "must be four numbers"),
        ([annotation(bbox=[1, 2, 1e39, 4])], "must be four numbers"),  # infinite in float32
        ([annotation(image_id=[0])], "`image_id` in `annotations` must be a number or text, got \\[0\\]"),
        ([annotation(category_id=[1]), annotation()], 'must be called "face"'),
        ([annotation(image_id=9)], "annotation 1 is for image 9, which is not in `images`"),
        ([{"id": 1, "bbox": [1, 2, 3, 4]}], "every entry of `annotations` must have `image_id`"),
        ([3], "`annotations` must be a list of objects"),
        ([annotation(category_id=1), annotation(category_id=2)], 'must be called "face", got person'),
    ],
)
def test_malformed_coco(folder, annotations, words):
    write_coco(folder, annotations, categories=({"id": 1, "name": "person"},))
    with pytest.raises(DatasetError, match=words):
        read_folder(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [{"id": [1], "file_name": "a.jpg"}]}, "`id` in `images` must be a number or text"),
        ({"images": [{"id": 1, "file_name": "a" * 300}]}, "which is not in"),
        ({"categories": 1}, "`categories` must be a list"),
    ],
)
def test_coco_of_other_types(folder, change, words):
    content = {"images": [], "annotations": [], "categories": []} | change
    (folder / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=words):
        read_folder(folder)


def test_coco_without_categories(folder):
    write_coco(folder, [annotation()])
    content = json.loads((folder / "boxes.json").read_text())
    (folder / "boxes.json").write_text(json.dumps(content | {"categories": None}))
    assert len(read_folder(folder)[0].faces) == 1


def test_an_image_that_is_not_there(folder):
    write_coco(folder, [], images=[{"id": 1, "file_name": "gone.jpg"}])
    with pytest.raises(DatasetError, match=r"boxes.json names gone.jpg, which is not in"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "c.jpg"}], "an id of its own, got 1 twice"),
        (
            [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}],
            "must list an image once, got a.jpg twice",
        ),
    ],
)
def test_an_image_listed_twice(folder, images, words):
    write_coco(folder, [], images=images)
    with pytest.raises(DatasetError, match=words):
        read_folder(folder)


def test_which_file_is_the_annotation(folder):
    (folder / "notes.json").write_text("{}")
    (folder / "broken.json").write_text("{")
    assert [len(picture.faces) for picture in read_folder(folder)] == [0, 0, 0]
    write_coco(folder, [annotation()])
    assert sum(len(picture.faces) for picture in read_folder(folder)) == 1
    (folder / "annotations").mkdir()
    (folder / "annotations" / "more.json").write_text((folder / "boxes.json").read_text())
    with pytest.raises(DatasetError, match=r"must hold one COCO file, got annotations/more.json, boxes.json"):
        read_folder(folder)


def test_yolo(folder):
    (folder / "labels" / "event").mkdir(parents=True)
    (folder / "labels" / "a.txt").write_text(
        "\ufeff0 0.5 0.5 0.1 0.2\n\n0 0.25 0.25 0.1 0.1 0.1 0.1 2 0.2 0.2 1 0 0 0 0.3 0.3 2 0.4 0.4 2\n"
    )
    (folder / "labels" / "event" / "b.txt").write_text("0 0.5 0.5 1 1 0.1 0.1 0 0 0.5 0.5 0.6 0.6 0.7 0.7\n")
    a, c, b = read_folder(folder)
    np.testing.assert_allclose(a.faces, [[90, 40, 110, 60], [40, 20, 60, 30]], rtol=1e-6)
    assert np.isnan(a.landmarks[0]).all()
    np.testing.assert_allclose(a.landmarks[1, [0, 1, 3]], [[20, 10], [40, 20], [60, 30]], rtol=1e-6)
    assert np.isnan(a.landmarks[1, 2]).all()
    assert b.faces.tolist() == [[0, 0, 40, 50]]
    np.testing.assert_allclose(b.landmarks[0, 0], [4, 5], rtol=1e-6)
    assert np.isnan(b.landmarks[0, 1]).all()
    assert len(c.faces) == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            "0 0.5 0.5 0.1",
            r"labels/a.txt, line 1 must be `class x y w h`, with five landmarks or none, got '0 0.5 0.5",
        ),
        ("0 0.5 0.5 0.1 x", "line 1 must be"),
        ("0 0.5 0.5 0.1 inf", "line 1 must be"),
        ("0 -1e39 0.5 0.1 0.1", "line 1 must be"),
        ("1 0.5 0.5 0.1 0.1", "line 1: the class must be 0, a face, got 1"),
        ("0 50 50 10 10", "must be shares of the image's size"),
    ],
)
def test_malformed_yolo(folder, row, words):
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text(row)
    with pytest.raises(DatasetError, match=words):
        read_folder(folder)


def test_labels_without_an_image(folder):
    (folder / "labels").mkdir()
    (folder / "labels" / "classes.txt").write_text("face\n")
    assert len(read_folder(folder)) == 3
    (folder / "labels" / "z.txt").write_text("")
    with pytest.raises(DatasetError, match=r"z.txt belongs to no image"):
        read_folder(folder)


def test_two_formats_at_once(folder):
    (folder / "labels").mkdir()
    (folder / "bbx_gt.txt").write_text("a.jpg\n0\n")
    with pytest.raises(DatasetError, match=r"must have annotations in one format, got bbx_gt\.txt and labels/"):
        read_folder(folder)


def test_annotations_are_named(folder):
    assert annotations_in(folder) == []
    (folder / "labels").mkdir()
    assert annotations_in(folder) == ["labels/"]
    write_coco(folder, [])
    assert annotations_in(folder) == ["boxes.json", "labels/"]
    (folder / "bbx_gt.txt").write_text("a.jpg\n0\n")
    assert annotations_in(folder) == ["bbx_gt.txt", "labels/"]


def test_unlisted(folder):
    assert unlisted(folder) == []
    (folder / "bbx_gt.txt").write_text("a.jpg\n0\n")
    assert unlisted(folder) == ["c.jpg", "event/b.png"]


@pytest.fixture
def annotated(folder):
    """The same in WIDER FACE's format, with landmarks, an ignore box and an image without faces."""
    (folder / "bbx_gt.txt").write_text(
        "a.jpg\n3\n10 20 30.25 40 0 0 0 0 0 0\n1 2 3 4 0 0 0 1 0 0\n60 20 40 40 0 0 0 0 0 0\n"
        "event/b.png\n0\nc.jpg\n1\n0.5 1 20 20 0 0 0 0 0 0\n"
    )
    (folder / "landmarks.txt").write_text(
        "# a.jpg\n10 20 30.25 40 11 22 0 33.5 4 0 5 6 0 -1 -1 -1 9 10 0 1\n# c.jpg\n0.5 1 20 20 " + "3 4 0 " * 5 + "1\n"
    )
    return folder


@pytest.mark.parametrize("form", ["wider", "coco", "yolo"])
def test_round_trip(annotated, form, tmp_path):
    expected = {picture.path.name: picture for picture in read_folder(annotated)}
    write_folder(list(expected.values()), ["a.jpg", "event/b.png", "c.jpg"], tmp_path / "out", form)
    found = read_folder(tmp_path / "out")
    assert {picture.path.name for picture in found} == expected.keys()
    for picture in found:
        wanted = expected[picture.path.name]
        assert picture.path.read_bytes() == wanted.path.read_bytes()
        np.testing.assert_allclose(picture.faces, wanted.faces, atol=1e-3)
        np.testing.assert_allclose(picture.landmarks, wanted.landmarks, atol=1e-3)
        np.testing.assert_allclose(picture.ignore, wanted.ignore[: 0 if form == "yolo" else None], atol=1e-3)


def test_command(annotated, tmp_path):
    out = tmp_path / "out"
    arguments = ["convert-data", str(annotated), str(out), "--format", "yolo"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "3 images, 3 faces" in result.stderr
    assert "1 ignore box is lost: YOLO has none" in result.stderr
    assert (out / "labels" / "a.txt").read_text().count("\n") == 2
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "already exists" in again.stderr
    wrong = CliRunner().invoke(app, ["convert-data", str(tmp_path / "none"), str(tmp_path / "o"), "--format", "coco"])
    assert wrong.exit_code == 2
    assert "must hold a folder `images`" in wrong.stderr
    assert not (tmp_path / "o").exists()
    arguments = ["convert-data", str(annotated), str(annotated / "bbx_gt.txt" / "o"), "--format", "coco"]
    no_folder = CliRunner().invoke(app, arguments)
    assert (no_folder.exit_code, no_folder.stderr) == (2, f"pyface: {arguments[2]}: Not a directory\n")


def test_annotations_that_are_not_text(folder):
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match=r"labels/a\.txt cannot be read as text"):
        read_folder(folder)
