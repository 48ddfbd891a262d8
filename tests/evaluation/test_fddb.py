"""FDDB's protocol on hand-made folds whose figures are worked out here, and what real files hold.

No part of FDDB is here: its figures cannot be reproduced in these tests.
"""

import itertools
import tarfile

import numpy as np
import pytest

from pyface.evaluation.fddb import (
    Detected,
    EvaluationError,
    Truth,
    evaluate,
    find_images,
    gains,
    read_annotations,
    read_detections,
    write_detections,
)
from pyface.evaluation.regions import ellipses, exact_overlap, pixel_overlap, rectangles

# Three faces, circles of radius 40, in three of four images and two folds.
FOLDS = {
    "FDDB-fold-01-ellipseList.txt": (
        "2002/07/19/big/img_1\n2\n40.000000 40.000000 1.570796 100.000000 100.000000  1\n40 40 0 300 100  1\n"
        "2002/07/19/big/img_2\n0\n"
    ),
    "FDDB-fold-02-ellipseList.txt": "2002/07/19/big/img_3\n1\n40 40 0 100 100  1\n",
}
# Concentric circles of radius r: their IoU is (r / 40) ** 2.
DETECTIONS = (
    "2002/07/19/big/img_1\n4\n"
    "30 30 0 300 100 0.5\n"  # 0.5625
    "36 36 0 100 100 0.9\n"  # 0.81
    "20 20 0 100 100 0.95\n"  # 0.25
    "400 10 30 30 0.7\n"  # a rectangle far away
    "2002/07/19/big/img_2\n1\n"
    "10 10 30 30 0.6\n"
)


@pytest.fixture
def folds(tmp_path):
    folder = tmp_path / "FDDB-folds"
    folder.mkdir()
    for name, text in FOLDS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def detections(tmp_path):
    path = tmp_path / "detections.txt"
    path.write_text(DETECTIONS)
    return path


def test_hand_made_folds(folds, detections):
    result = evaluate(read_detections(detections), read_annotations(folds), overlap=exact_overlap)
    roc = result.roc
    assert result.faces == 3
    assert roc.thresholds.tolist() == [0.95, 0.9, 0.7, 0.6, 0.5]
    assert roc.discrete == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    # At 0.9 the first face changes over to the better detection, and the former one is a false positive.
    assert roc.continuous == pytest.approx([0.25 / 3, 0.81 / 3, 0.81 / 3, 0.81 / 3, (0.81 + 0.5625) / 3])
    assert roc.false_positives.tolist() == [1, 1, 2, 3, 3]
    assert roc.at(0) == (0, 0)
    assert roc.at(2) == pytest.approx((1 / 3, 0.27))
    assert roc.at(100) == pytest.approx((2 / 3, 0.4575))
    assert result.missing == ["2002/07/19/big/img_3"]
    assert result.unknown == []


def test_hand_made_folds_in_pixels(folds, detections):
    roc = evaluate(read_detections(detections), read_annotations(folds)).roc
    assert roc.discrete == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert roc.continuous == pytest.approx([0.0833, 0.27, 0.27, 0.27, 0.4575], abs=0.01)


def test_a_match_needs_more_than_half():
    truth = Truth({"a": rectangles([[0, 0, 20, 20]])}, [["a"]])
    for height, rate in ((10, 0), (10.001, 1)):
        found = {"a": Detected(rectangles([[0, 0, 20, height]]), np.array([1.0]))}
        assert evaluate(found, truth, overlap=exact_overlap).roc.discrete.tolist() == [rate]


def test_regions_end_at_the_image():
    truth = Truth({"a": ellipses([[40, 40, 0, 0, 100]])}, [["a"]])  # half of it lies left of the image
    found = {"a": Detected(rectangles([[0, 60, 40, 80]]), np.array([1.0]))}
    for overlap in (exact_overlap, pixel_overlap):
        uncut = evaluate(found, truth, overlap=overlap).roc
        cut = evaluate(found, truth, {"a": (200, 200)}, overlap).roc
        assert uncut.discrete.tolist() == [0]
        assert cut.discrete.tolist() == [1]
        assert cut.continuous[0] == pytest.approx(np.pi / 4, abs=0.03)


def test_matching_is_one_to_one_and_repeated_at_each_score():
    # First the face of 0.9; then both faces are matched, by giving that up: 0.85 + 0.8 > 0.9 + 0.
    assert gains(np.array([[0.9, 0.8], [0.85, 0]]), np.array([0.9, 0.8])).tolist() == [
        [0.9, 0.8],
        [1, 1],
        [0.9, pytest.approx(0.75)],
        [0, 0],
    ]
    # Two detections of one face: one is false. Of two matches the larger sum wins, though that costs a hit.
    assert gains(np.array([[0.9, 0.7]]), np.array([0.8, 0.9]))[3].sum() == 1
    assert gains(np.array([[0.95, 0.51], [0.55, 0]]), np.array([0.9, 0.9]))[1:].ravel().tolist() == [
        2,
        pytest.approx(1.06),
        0,
    ]
    assert gains(np.array([[0.99, 0.51], [0.52, 0.1]]), np.array([0.9, 0.9]))[1].tolist() == [1]
    assert gains(np.zeros((0, 2)), np.array([0.9, 0.8]))[3].tolist() == [1, 1]


def test_matching_against_all_permutations():
    random = np.random.default_rng(0)
    for _ in range(60):
        faces, count = random.integers(1, 4), random.integers(1, 6)
        overlap = random.random((faces, count)) * (random.random((faces, count)) < 0.6)
        scores = random.random(count).round(1)
        thresholds, *columns = gains(overlap, scores)
        hits, sums, false = (np.cumsum(column) for column in columns)
        assert thresholds.tolist() == sorted(set(scores.tolist()), reverse=True)
        for k, threshold in enumerate(thresholds):
            reached = np.concatenate([overlap[:, scores >= threshold], np.zeros((faces, faces))], 1)  # or unmatched
            every = itertools.permutations(range(reached.shape[1]), int(faces))
            best = max((reached[np.arange(faces), list(of)] for of in every), key=np.sum)
            assert sums[k] == pytest.approx(best.sum())
            assert hits[k] + false[k] == (scores >= threshold).sum()
            assert hits[k] == (best > 0.5).sum()


def test_equal_scores_and_order_of_images():
    random = np.random.default_rng(1)
    faces = {
        str(k): ellipses(np.c_[random.uniform(20, 40, (3, 2)), [0, 1, 2], [50, 150, 250], [60, 60, 60]])
        for k in range(9)
    }
    found = {
        key: Detected(ellipses(of.rows + random.normal(0, 6, of.rows.shape)), random.random(3).round(1))
        for key, of in faces.items()
    }
    forward = evaluate(found, Truth(faces, [list(faces)])).roc
    backward = evaluate(found, Truth(dict(reversed(faces.items())), [list(faces)])).roc
    assert len(forward.thresholds) == len(set(forward.thresholds))
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_allclose(a, b)
    assert forward.false_positives[-1] + round(forward.discrete[-1] * 27) == 27


# --- files -----------------------------------------------------------------------------------------------------------


def test_annotations(folds):
    truth = read_annotations(folds)
    assert truth.folds == [["2002/07/19/big/img_1", "2002/07/19/big/img_2"], ["2002/07/19/big/img_3"]]
    assert truth.faces["2002/07/19/big/img_1"].rows.tolist() == [
        [40, 40, 1.570796, 100, 100],
        [40, 40, 0, 300, 100],
    ]
    assert len(truth.faces["2002/07/19/big/img_2"].rows) == 0
    one = read_annotations(folds / "FDDB-fold-02-ellipseList.txt")
    assert list(one.faces) == ["2002/07/19/big/img_3"]


@pytest.mark.parametrize(
    "change", [lambda s: s.replace("\n", "\r\n"), lambda s: s.replace("\n", "\n\n"), lambda s: "\ufeff" + s]
)
def test_windows_files(folds, detections, change):
    before = read_annotations(folds), read_detections(detections)
    for path in (detections, *folds.iterdir()):
        path.write_bytes(change(path.read_text()).encode())
    after = read_annotations(folds), read_detections(detections)
    assert {key: of.rows.tolist() for key, of in before[0].faces.items()} == {
        key: of.rows.tolist() for key, of in after[0].faces.items()
    }
    assert [of.scores.tolist() for of in before[1].values()] == [of.scores.tolist() for of in after[1].values()]


def test_detections(tmp_path):
    path = tmp_path / "all.txt"
    path.write_text("a\\b.JPG\n2\n1 2 3 4 5e-1\n30 20 1.5 100 100 -1E2\nc.d\n0\n")
    found = read_detections(path)
    assert list(found) == ["a/b", "c.d"]
    assert found["a/b"].scores.tolist() == [0.5, -100]
    assert found["a/b"].regions.is_ellipse.tolist() == [False, True]
    assert found["a/b"].regions.rows[0, :4].tolist() == [1, 2, 3, 4]
    assert read_detections(path, fit_ellipses=True)["a/b"].regions.is_ellipse.all()


def test_folders_and_archives(tmp_path, folds):
    rows = {"2002/07/19/big/img_1": [(60, 60, 80.004, 80, 0.123456789)], "2002/07/19/big/img_2": []}
    write_detections(folds / "fold-01-out.txt", rows)  # beside the lists, which are no detections
    write_detections(folds / "deeper" / "fold-02-out.txt", {"2002/07/19/big/img_3": []})
    (folds / "._fold-01-out.txt").write_bytes(b"\x00\xff")  # as macOS adds
    expected = ["60.00 60.00 80.00 80.00 0.123457"]
    assert (folds / "fold-01-out.txt").read_text().splitlines()[2:3] == expected
    with tarfile.open(tmp_path / "out.tar.gz", "w:gz") as archive:
        archive.add(folds / "fold-01-out.txt", "x/fold-01-out.txt")
        archive.add(folds / "deeper" / "fold-02-out.txt", "x/fold-02-out.txt")
    for source in (folds, tmp_path / "out.tar.gz"):
        found = read_detections(source)
        assert sorted(found) == [f"2002/07/19/big/img_{k}" for k in (1, 2, 3)]
        assert found["2002/07/19/big/img_1"].scores.tolist() == [0.123457]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n1\n1 2 3 4 nan\n", r"d.txt, line 3 must be finite numbers, a rectangle: .*got '1 2 3 4 nan'"),
        ("a\n2\n1 2 3 4 0.5\n1 2 3 4\n", "line 4 must be finite numbers, .* got '1 2 3 4'"),
        ("a\n1\n1 2 3 four 0.5\n", "line 3 must .*four"),
        ("a\n1\n1 2 -3 4 0.5\n", "line 3: width and height must be at least 0"),
        ("a\n1\n-1 2 3 4 5 0.5\n", "line 3: radii must be at least 0"),
        ("a\n1\n1 2 3 1e9 0.5\n", "line 3: .*nothing above 10000"),
        ("a\nb\n", "line 2 must be the number of rows of a, got 'b'"),
        pytest.param("a\n" + "9" * 5000, "line 2 must be the number of rows of a", id="5,000 digits"),
        ("\n\na\n", "line 4 must be the number of rows of a, got the end"),
        ("a\n2\n1 2 3 4 0.5\n", "line 1: a must have 2 rows, got fewer"),
        ("a\n1\n1 2 3 4 0.5\n1 2 3 4 0.5\n", "line 4 must be the name of an image, got '1 2 3 4 0.5'"),
        ("a\n0\nb\n0\na.jpg\n0\n", "line 5: detections of a must be given once, got others in "),
        ("", "must hold detections"),
    ],
)
def test_malformed_detections_are_named(tmp_path, text, words):
    path = tmp_path / "d.txt"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=words):
        read_detections(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "a\n1\n1 2 3 4 5\n",
            r"FDDB-fold-03-ellipseList.txt, line 3 must be finite numbers, an ellipse: major .* 1",
        ),
        ("2002/07/19/big/img_3\n0\n", "line 1: 2002/07/19/big/img_3 must be annotated once, got it twice, first in "),
        ("a\n1\n", "line 1: a must have 1 rows"),
    ],
)
def test_malformed_annotations_are_named(folds, text, words):
    (folds / "FDDB-fold-03-ellipseList.txt").write_text(text)
    with pytest.raises(EvaluationError, match=words):
        read_annotations(folds)


def test_what_is_not_there(tmp_path, folds, detections):
    for source in (tmp_path / "gone", tmp_path):
        (folds / "x").mkdir(exist_ok=True)
        with pytest.raises(EvaluationError, match="must hold FDDB's ellipse lists"):
            read_annotations(folds / "x" if source == tmp_path else source)
    with pytest.raises(EvaluationError, match=r"gone must be a folder or a tar archive.*: it does not exist"):
        read_detections(tmp_path / "gone")
    with pytest.raises(EvaluationError, match="must hold detections"):
        read_detections(folds)  # only annotations
    detections.write_bytes(b"\xff\xfea\x00")
    with pytest.raises(EvaluationError, match=r"detections.txt must be UTF-8 text"):
        read_detections(detections)


def test_nothing_to_score(folds):
    truth = read_annotations(folds)
    with pytest.raises(EvaluationError, match="there are no detections in the annotated images"):
        evaluate({"b": Detected(rectangles([[0, 0, 9, 9]]), np.array([1.0]))}, truth)
    with pytest.raises(EvaluationError, match="the annotations hold no faces"):
        evaluate({}, Truth({"a": ellipses([])}, [["a"]]))


def test_unknown_images_count_for_nothing(folds, detections):
    found = read_detections(detections)
    plain = evaluate(found, read_annotations(folds))
    more = evaluate(found | {"b": Detected(rectangles([[0, 0, 9, 9]]), np.array([1.0]))}, read_annotations(folds))
    assert more.unknown == ["b"]
    assert more.roc.false_positives.tolist() == plain.roc.false_positives.tolist()


def test_images(tmp_path):
    (tmp_path / "2002").mkdir()
    (tmp_path / "2002" / "img_1.png").touch()
    assert find_images(tmp_path, ["2002/img_1", "2002/img_2"]) == {"2002/img_1": tmp_path / "2002" / "img_1.png"}
    with pytest.raises(EvaluationError, match="must hold FDDB's images"):
        find_images(tmp_path, ["2002/img_2"])
