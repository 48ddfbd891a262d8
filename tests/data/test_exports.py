"""Data folders as other programs export them: their layouts, names and oddities."""

import json

import cv2
import numpy as np
import pytest

from pyface.data.annotations import DatasetError
from pyface.data.folder import annotations_in, read_folder, read_records, unlisted, write_folder

FACE = {"id": 1, "name": "face"}


def write_image(path, height=40, width=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def write_coco(path, names, boxes=(), categories=(FACE,), ids=None, **more):
    """A COCO file in which image k has the k-th box."""
    ids = ids or range(len(names))
    images = [{"id": key, "file_name": name} for key, name in zip(ids, names, strict=True)]
    annotations = [
        {"id": k, "image_id": key, "category_id": 1, "bbox": list(box)} | more
        for k, (key, box) in enumerate(zip(ids, boxes, strict=False))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "images": images, "annotations": annotations, "categories": list(categories)}
    path.write_text(json.dumps(content))


def write_labels(folder, name, text):
    write_image(folder / "images" / f"{name}.png")
    path = folder / "labels" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def faces_of(folder):
    """The number of faces of each image, by its name."""
    return {
        image.name: len(picture.faces) for image, picture in zip(read_records(folder), read_folder(folder), strict=True)
    }


# --- COCO ------------------------------------------------------------------------------------------------------------

BOX = (1, 2, 3, 4)


def test_official_layout_with_two_splits(tmp_path):
    """annotations/instances_*.json beside images/train2017 and images/val2017; file names have no folders."""
    for split in ("train2017", "val2017"):
        write_image(tmp_path / "images" / split / f"{split}.jpg")
        write_coco(tmp_path / "annotations" / f"instances_{split}.json", [f"{split}.jpg"], [BOX])
    with pytest.raises(DatasetError, match=r"must hold one COCO file, got .*; give the path of the file instead"):
        read_folder(tmp_path)
    file = tmp_path / "annotations" / "instances_val2017.json"
    assert faces_of(file) == {"val2017/val2017.jpg": 1}
    assert annotations_in(file) == ["instances_val2017.json"]
    assert unlisted(file) == ["train2017/train2017.jpg"]


@pytest.mark.parametrize("images", ["val2017", "data", "."])
def test_folders_of_images_with_other_names(images, tmp_path):
    """COCO's own (val2017/), FiftyOne's (data/), and Roboflow's, where images lie beside the JSON file."""
    write_image(tmp_path / images / "a.jpg")
    write_coco(tmp_path / "_annotations.coco.json", ["a.jpg"], [BOX])
    expected = {f"{images}/a.jpg".removeprefix("./"): 1}
    assert faces_of(tmp_path) == faces_of(tmp_path / "_annotations.coco.json") == expected


@pytest.mark.parametrize(
    "name", ["/data/upload/3/a.jpg", "images/a.jpg", "images\\a.jpg", "C:\\photos\\a.jpg", "./a.jpg", "../images/a.jpg"]
)
def test_names_with_folders_of_another_machine(name, tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    write_coco(tmp_path / "result.json", [name], [BOX])
    (picture,) = read_folder(tmp_path)
    assert picture.path.samefile(tmp_path / "images" / "a.jpg")
    assert len(picture.faces) == 1
    assert unlisted(tmp_path) == []


def test_an_absolute_name_on_this_machine(tmp_path):
    write_image(tmp_path / "photos" / "a.jpg")
    (tmp_path / "set" / "images").mkdir(parents=True)
    write_coco(tmp_path / "set" / "x.json", [str(tmp_path / "photos" / "a.jpg")], [BOX])
    (image,) = read_records(tmp_path / "set")
    assert (image.path, image.name) == (tmp_path / "photos" / "a.jpg", "a.jpg")


def test_a_name_never_stands_for_an_image_of_another_folder(tmp_path):
    write_image(tmp_path / "images" / "train" / "1.jpg")
    write_coco(tmp_path / "x.json", ["val/1.jpg"], [BOX])
    with pytest.raises(DatasetError, match=r"x.json names val/1.jpg, which is not in"):
        read_folder(tmp_path)
    write_image(tmp_path / "images" / "test" / "1.jpg")
    write_coco(tmp_path / "x.json", ["1.jpg"], [BOX])
    with pytest.raises(DatasetError, match=r"must be unambiguous, got 1.jpg, which could be .*test/1.jpg and .*train"):
        read_folder(tmp_path)
    write_coco(tmp_path / "x.json", ["1.png"], [BOX])
    with pytest.raises(DatasetError, match=r"names 1.png, which is not in"):
        read_folder(tmp_path)


def test_masks_and_ids_of_other_types(tmp_path):
    """Crowds with run-length masks, ids that are strings or, after pandas, floats; areas of masks."""
    for name in "ab":
        write_image(tmp_path / "images" / f"{name}.jpg")
    mask = {"segmentation": {"counts": "PPYo0", "size": [40, 60]}, "iscrowd": 1, "area": 7.5}
    write_coco(tmp_path / "x.json", ["a.jpg", "b.jpg"], [BOX, (5, 6, 7, 8)], ids=["a7", 2.0], **mask)
    a, b = read_records(tmp_path)
    assert (a.id, b.id) == ("a7", 2.0)
    assert [(box.xywh, box.ignore, box.area) for box in a.boxes] == [((1, 2, 3, 4), True, 7.5)]
    assert read_folder(tmp_path)[1].ignore.tolist() == [[5, 6, 12, 14]]
    text = json.dumps({"segmentation": [[1, 2, 3, 4, 5, 6]], "iscrowd": 0})
    write_coco(tmp_path / "x.json", ["a.jpg", "b.jpg"], [BOX, BOX], **json.loads(text))
    assert faces_of(tmp_path) == {"a.jpg": 1, "b.jpg": 1}


def test_keypoints_in_the_order_of_the_category(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    points = ["nose", "left_eye", "right_eye", "right_mouth_corner", "left_mouth_corner"]
    values = [value for k in range(5) for value in (10 + k, 20 + k, 2)]
    write_coco(tmp_path / "x.json", ["a.jpg"], [BOX], [FACE | {"keypoints": points}], keypoints=values)
    assert read_folder(tmp_path)[0].landmarks[0, :, 0].tolist() == [11, 12, 10, 14, 13]
    write_coco(
        tmp_path / "x.json", ["a.jpg"], [BOX], [FACE | {"keypoints": ["1", "2", "3", "4", "5"]}], keypoints=values
    )
    assert read_folder(tmp_path)[0].landmarks[0, :, 0].tolist() == [10, 11, 12, 13, 14]


def test_a_damaged_file_does_not_count_as_missing_annotations(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    write_coco(tmp_path / "x.json", ["a.jpg"], [BOX])
    (tmp_path / "x.json").write_bytes((tmp_path / "x.json").read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"x\.json cannot be read as JSON"):
        read_folder(tmp_path)


# --- YOLO ------------------------------------------------------------------------------------------------------------


def test_splits_below_images_and_labels(tmp_path):
    write_labels(tmp_path, "train/a", "0 .5 .5 .1 .1\r\n0 .2 .2 .1 .1\r\n")
    write_labels(tmp_path, "val/a", "")
    (tmp_path / "labels" / "train.cache").write_bytes(b"\0")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: face\n")
    assert faces_of(tmp_path) == {"train/a.png": 2, "val/a.png": 0}


def test_splits_above_images_and_labels(tmp_path):
    """Roboflow's train/ and valid/ are data folders of their own, and share data.yaml."""
    for split in ("train", "valid"):
        write_labels(tmp_path / split, "a", "1 .5 .5 .1 .1\n0 .2 .2 .5 .5\n")
    (tmp_path / "data.yaml").write_text("nc: 2\r\nnames: ['car', 'Face']\r\n")
    with pytest.raises(DatasetError, match=r"must hold a folder `images`, .*; give .*train or .*valid"):
        read_folder(tmp_path)
    (picture,) = read_folder(tmp_path / "train")
    np.testing.assert_allclose(picture.faces, [[27, 18, 33, 22]], rtol=1e-6)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names:\n  0: person\n  3: face\n"),
        ("data.yaml", "names: [person, a, b, face, car]"),
        ("classes.txt", "person\r\na\r\nb\r\nface\r\n"),
        ("labels/classes.txt", "person\na\nb\nface\n"),
    ],
)
def test_class_names(tmp_path, file, text):
    write_labels(tmp_path, "a", "0 .5 .5 .1 .1\n3 .2 .2 .5 .5\n")
    (tmp_path / file).write_text(text)
    assert faces_of(tmp_path) == {"a.png": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [person, car]", 'one of its classes must be called "face", got person, car'),
        ("names: [face, car]", "line 1: the class must be from 0 to 1, got 3"),
        ("names: [face]", "line 1: the class must be 0, a face, got 3"),
        ("names: [face", "data.yaml cannot be read as YAML"),
        ("train: x", "line 1: the class must be 0, a face, got 3"),
    ],
)
def test_wrong_classes(tmp_path, text, words):
    write_labels(tmp_path, "a", "3 .5 .5 .1 .1\n")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DatasetError, match=words):
        read_folder(tmp_path)


def test_boxes_beyond_the_image_and_hidden_files(tmp_path):
    write_labels(tmp_path, "a.b", "0\t0.99\t-0.01\t0.1\t1.2\n0 .5 .5 0 .1\n")
    (tmp_path / "labels" / "._a.b.txt").write_bytes(b"\xff\0")  # what macOS puts into archives
    (tmp_path / "images" / "._a.b.png").write_bytes(b"\xff\0")
    (picture,) = read_folder(tmp_path)
    np.testing.assert_allclose(picture.faces, [[56.4, -24.4, 62.4, 23.6]], rtol=1e-6)


def test_rows_with_scores_are_refused(tmp_path):
    write_labels(tmp_path, "a", "0 .5 .5 .1 .1 .9\n")
    with pytest.raises(DatasetError, match="must be `class x y w h`, with five landmarks or none"):
        read_folder(tmp_path)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_images_that_would_share_labels(tmp_path):
    for name in ("a.jpg", "a.png"):
        write_image(tmp_path / "set" / "images" / name)
    pictures = read_folder(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"every image must have a name of its own in .*, got two for a.txt"):
        write_folder(pictures, ["a.jpg", "a.png"], tmp_path / "yolo", "yolo")
    assert not (tmp_path / "yolo").exists()
    write_folder(pictures, ["a.jpg", "a.png"], tmp_path / "coco", "coco")
    assert faces_of(tmp_path / "coco") == {"a.jpg": 0, "a.png": 0}


@pytest.mark.parametrize("form", ["wider", "coco", "yolo"])
def test_an_export_can_be_converted(tmp_path, form):
    from typer.testing import CliRunner

    from pyface.cli import app

    write_image(tmp_path / "val2017" / "a.jpg")
    file = tmp_path / "annotations" / "instances_val2017.json"
    write_coco(file, ["a.jpg"], [BOX])
    result = CliRunner().invoke(app, ["convert-data", str(file), str(tmp_path / "out"), "--format", form])
    assert result.exit_code == 0, result.output
    (picture,) = read_folder(tmp_path / "out")
    np.testing.assert_allclose(picture.faces, [[1, 2, 4, 6]], atol=1e-5)
    assert faces_of(tmp_path / "out") == {"val2017/a.jpg": 1}
