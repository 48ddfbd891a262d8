"""Data folders in the annotation formats of WIDER FACE and RetinaFace."""

import numpy as np
import pytest

from pyface.data.annotations import DatasetError
from pyface.data.folder import read_folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "event").mkdir(parents=True)
    for name in ("a.jpg", "event/b.jpg", "c.jpg"):
        (tmp_path / "images" / name).write_bytes(b"")
    return tmp_path


def write(folder, boxes, landmarks=None):
    (folder / "bbx_gt.txt").write_text(boxes)
    if landmarks is not None:
        (folder / "landmarks.txt").write_text(landmarks)


def test_boxes_and_landmarks(folder):
    write(
        folder,
        "a.jpg\r\n3\r\n10 20 30 40 0 0 0 0 0 0\r\n1 2 3 4 0 0 0 1 0 0\r\n5 5 0 9 0 0 0 0 0 0\r\n"
        "event/b.jpg\n0\n0 0 0 0 0 0 0 0 0 0\nc.jpg\n2\n1 1 5 5 0 0 0 0 0 0\n10 10 5.5 5 2 0 0 0 0 0\n",
        "# a.jpg\n10 20 30 40 1 2 0 3 4 1 5 6 0 -1 -1 -1 9 10 0 0\n# event/b.jpg\n# c.jpg\n"
        "10 10 5.5 5 1 2 0 3 4 0 5 6 0 7 8 0 9 10 0 0\n",
    )
    a, b, c = read_folder(folder)
    assert a.path == folder / "images" / "a.jpg"
    assert a.faces.tolist() == [[10, 20, 40, 60]]
    assert a.faces.dtype == np.float32
    assert a.ignore.tolist() == [[1, 2, 4, 6]]
    assert a.landmarks[0, :3].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert np.isnan(a.landmarks[0, 3]).all()
    assert (len(b.faces), len(b.ignore), b.landmarks.shape) == (0, 0, (0, 5, 2))
    assert c.faces.tolist() == [[1, 1, 6, 6], [10, 10, 15.5, 15]]
    assert np.isnan(c.landmarks[0]).all()
    assert c.landmarks[1, 4].tolist() == [9, 10]


@pytest.mark.parametrize("again", ["a.jpg", "./a.jpg"])
def test_an_image_listed_twice_is_refused(folder, again):
    """Merged lists: each block's faces would count as background of the other."""
    row = "10 10 5 5 0 0 0 0 0 0\n"
    write(folder, f"a.jpg\n1\n{row}c.jpg\n1\n{row}{again}\n1\n{row}")
    with pytest.raises(
        DatasetError, match=r"bbx_gt\.txt: .*a\.jpg must be listed once, got lines 1 and 7; put its rows into"
    ):
        read_folder(folder)
    points = "10 10 5 5 1 2 0 3 4 0 5 6 0 7 8 0 9 10 0 0\n"
    write(folder, f"a.jpg\n1\n{row}", f"# a.jpg\n{points}# {again}\n{points}")
    with pytest.raises(DatasetError, match=r"landmarks\.txt: .*a\.jpg must be listed once, got lines 1 and 3"):
        read_folder(folder)


def test_a_byte_order_mark_is_skipped(folder):
    boxes, points = "a.jpg\n1\n10 10 5 5 0 0 0 0 0 0\n", "# a.jpg\n10 10 5 5 1 2 0 3 4 0 5 6 0 7 8 0 9 10 0 0\n"
    for boxes_mark, points_mark in (("\ufeff", ""), ("", "\ufeff"), ("\ufeff", "\ufeff")):
        (folder / "bbx_gt.txt").write_text(boxes_mark + boxes, encoding="utf-8")
        (folder / "landmarks.txt").write_text(points_mark + points, encoding="utf-8")
        (picture,) = read_folder(folder)
        assert picture.faces.tolist() == [[10, 10, 15, 15]]
        assert picture.landmarks[0, 4].tolist() == [9, 10]


def test_no_boxes_without_the_row_of_zeros(folder):
    write(folder, "a.jpg\n0\nc.jpg\n1\n0 0 5 5 0 0 0 0 0 0\n")
    a, c = read_folder(folder)
    assert len(a.faces) == 0
    assert len(c.faces) == 1


def test_negatives(folder):
    pictures = read_folder(folder)
    assert [picture.path.name for picture in pictures] == ["a.jpg", "c.jpg", "b.jpg"]
    assert all(len(picture.faces) == 0 for picture in pictures)


@pytest.mark.parametrize(
    ("boxes", "landmarks", "words"),
    [
        ("a.jpg\n1\n1 2 3 0 0 0 0 0 0\n", None, r"bbx_gt.txt, line 3 must be 10 numbers, x y w h.*'1 2 3 0 0"),
        ("a.jpg\n1\n1 2 x 4 0 0 0 0 0 0\n", None, "line 3 must be 10 numbers"),
        ("a.jpg\n1\n1 2 nan 4 0 0 0 0 0 0\n", None, "line 3"),
        ("a.jpg\n1\n1 2 1e39 4 0 0 0 0 0 0\n", None, "line 3"),
        pytest.param("a.jpg\n" + "9" * 5000, None, "line 2 must be the number", id="5,000 digits"),
        pytest.param("a" * 300 + "\n0\n", None, "which is not in", id="a name of 300 letters"),
        ("a.jpg\nc.jpg\n", None, "line 2 must be the number of boxes of a.jpg"),
        ("a.jpg\n", None, "line 2 must be the number of boxes"),
        ("a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n", None, "a.jpg must have 2 rows, got 1"),
        ("gone.jpg\n0\n", None, "names gone.jpg, which is not in"),
        ("a.jpg\n0\n", "1 2 3 4\n", "landmarks.txt, line 1 must be `# file`"),
        ("a.jpg\n0\n", "# a.jpg\n1 2 3 4 5\n", "landmarks.txt, line 2 must be 20 numbers"),
        (
            "a.jpg\n1\n10 20 30 40 0 0 0 0 0 0\n",
            "# a.jpg\n10.5 20 30 40 1 2 0 3 4 0 5 6 0 7 8 0 9 10 0 0\n",
            "landmarks.txt: no row has the name and x y w h of a face in bbx_gt.txt",
        ),
    ],
)
def test_malformed_files_are_named(folder, boxes, landmarks, words):
    write(folder, boxes, landmarks)
    with pytest.raises(DatasetError, match=words):
        read_folder(folder)


def test_invalid_data_folders(tmp_path):
    with pytest.raises(DatasetError, match="must hold a folder `images`"):
        read_folder(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match="holds no images"):
        read_folder(tmp_path)
    (tmp_path / "bbx_gt.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="cannot be read as text"):
        read_folder(tmp_path)
