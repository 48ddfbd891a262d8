"""WIDER FACE's protocol: hand-made cases whose figures are known, hostile files, and two published result files."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy import io as io_mat

from pyface.evaluation.widerface import (
    SUBSETS,
    EvaluationError,
    Image,
    evaluate,
    parse_predictions,
    read_ground_truth,
    read_predictions,
    write_predictions,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "widerface_val"
KEY = ("0--Parade", "one")


def image(boxes, counted=None):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    mask = np.ones(len(boxes), bool) if counted is None else np.array(counted, bool)
    return Image(boxes, dict.fromkeys(SUBSETS, mask))


def rows(*of):
    return np.array(of, np.float64).reshape(-1, 5)


def ap(predictions, truth):
    return evaluate(predictions, truth).average_precision()["hard"]


FACES = [[0, 0, 20, 20], [100, 0, 20, 20]]


@pytest.mark.parametrize(
    ("predictions", "counted", "expected"),
    [
        (rows([0, 0, 20, 20, 0.9], [100, 0, 20, 20, 0.1]), None, 1.0),
        (rows([100, 0, 20, 20, 0.1], [0, 0, 20, 20, 0.9]), None, 1.0),  # not sorted
        (rows([0, 0, 20, 20, 0.5], [100, 0, 20, 20, 0.5]), None, 1.0),  # equal scores count as 1
        (rows([0, 0, 20, 20, 0.9], [300, 0, 20, 20, 0.1]), None, 0.5),
        (rows([0, 0, 20, 20, 0.9], [0, 0, 20, 20, 0.8], [100, 0, 20, 20, 0.1]), None, 0.5 + 0.5 * 2 / 3),  # found twice
        (rows([300, 0, 20, 20, 0.9], [0, 0, 20, 20, 0.1]), None, 0.25),
        (rows([0, 0, 20, 20, 0.9], [100, 0, 20, 20, 0.1]), [True, False], 1.0),  # the other one is not counted
        (rows([100, 0, 20, 20, 0.9], [0, 0, 20, 20, 0.1]), [True, False], 1.0),
        (rows([0, 9, 20, 20, 0.9], [100, 0, 20, 20, 0.1]), None, 0.25),  # IoU below 0.5: a miss
    ],
)
def test_hand_made_cases(predictions, counted, expected):
    assert ap({KEY: predictions}, {KEY: image(FACES, counted)}) == pytest.approx(expected, abs=1e-12)


def test_a_prediction_takes_its_best_box_and_no_second_choice():
    # Both lie nearest to the first box; the second would be left for one of them, but is not taken.
    truth = {KEY: image([[0, 0, 20, 20], [6, 0, 20, 20]])}
    assert ap({KEY: rows([0, 0, 20, 20, 0.9], [1, 0, 20, 20, 0.1])}, truth) == 0.5


def test_widths_count_one_more():
    # 10 x 10 against 10 x 10 five pixels on: (6 * 11) / (2 * 121 - 66) = 0.375, without the one 1 / 3.
    truth = {KEY: image([[0, 0, 10, 10]])}
    predictions = {KEY: rows([5, 0, 10, 10, 0.9])}
    assert evaluate(predictions, truth, 0.375).average_precision()["easy"] == 1
    assert evaluate(predictions, truth, 0.3751).average_precision()["easy"] == 0


def test_images_without_predictions_or_boxes():
    empty, absent = ("0--Parade", "empty"), ("0--Parade", "absent")
    truth = {KEY: image(FACES), empty: image([]), absent: image(FACES)}
    result = evaluate({KEY: rows([0, 0, 20, 20, 0.9], [100, 0, 20, 20, 0.2]), empty: rows([0, 0, 9, 9, 1.0])}, truth)
    assert result.average_precision() == dict.fromkeys(SUBSETS, 0.5)  # whose faces stay in the denominator
    assert result.missing == [absent]
    assert result.unknown == []
    unknown = evaluate({KEY: rows([0, 0, 20, 20, 0.9]), ("x", "y"): rows([0, 0, 1, 1, 0.5])}, {KEY: image(FACES)})
    assert unknown.unknown == [("x", "y")]
    with pytest.raises(EvaluationError, match="there are no predictions"):
        evaluate({}, truth)


def test_random_cases_against_the_plain_loop():
    """The protocol once more, step by step as docs/detectors.md 6.1 describes it."""
    random = np.random.default_rng(0)
    truth, predictions = {}, {}
    for k in range(8):
        boxes = np.concatenate([random.uniform(0, 60, (k, 2)), random.uniform(5, 30, (k, 2))], 1)
        noisy = np.concatenate([boxes + random.normal(0, 2, boxes.shape), random.uniform(5, 40, (5, 4))])
        truth["e", str(k)] = image(boxes, random.random(k) < 0.7)
        predictions["e", str(k)] = np.concatenate([noisy, random.random((len(noisy), 1)).round(2)], 1)
    assert ap(predictions, truth) == pytest.approx(plain_ap(predictions, truth), abs=1e-12)


def plain_ap(predictions, truth):
    every = np.concatenate([p[:, 4] for p in predictions.values()])
    totals = np.zeros((1000, 2))
    faces = 0
    for key, (boxes, counted) in truth.items():
        faces += counted["hard"].sum()
        if not len(boxes):
            continue
        detections = sorted(predictions[key].tolist(), key=lambda row: -row[4])
        found, kept = set(), []
        for x, y, w, h, score in detections:
            overlaps = []
            for bx, by, bw, bh in boxes:
                iw = min(x + w, bx + bw) - max(x, bx) + 1
                ih = min(y + h, by + bh) - max(y, by) + 1
                inter = max(iw, 0) * max(ih, 0)
                overlaps.append(inter / ((w + 1) * (h + 1) + (bw + 1) * (bh + 1) - inter))
            best = int(np.argmax(overlaps))
            is_kept = True
            if overlaps[best] >= 0.5:
                is_kept = bool(counted["hard"][best])
                found = found | ({best} if is_kept else set())
            kept.append(((score - every.min()) / np.ptp(every), is_kept, len(found)))
        for t in range(1000):
            prefix = [row for row in kept if row[0] >= 1 - (t + 1) / 1000]
            if prefix:
                totals[t] += sum(row[1] for row in prefix), prefix[-1][2]
    precision = totals[:, 1] / np.maximum(totals[:, 0], 1)
    recall = np.concatenate([[0], totals[:, 1] / faces])
    return sum((recall[i + 1] - recall[i]) * precision[i:].max() for i in range(1000))


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n1\n1 2 3 4 0.5\n", [[1, 2, 3, 4, 0.5]]),
        ("one\r\n2\r\n1 2 3 4 5e-1\r\n1 2 3 4 1E-07\r\n\r\n", [[1, 2, 3, 4, 0.5], [1, 2, 3, 4, 1e-7]]),
        ("one\n0\n", []),
        ("one\n0", []),
    ],
)
def test_rows(text, expected):
    assert parse_predictions(text, "a.txt").tolist() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one\n1\n1 2 3 4 nan\n", r"a.txt, line 3 must be five finite numbers x y w h score, got '1 2 3 4 nan'"),
        ("one\n2\n1 2 3 4 0.5\n1 2 3 4\n", "line 4 must .* got '1 2 3 4'"),
        ("one\n2\n1 2 3 4\n5 1 2 3 4 5\n", "line 3"),
        ("one\n1\n1 2 3 four 0.5\n", "line 3 must .*four"),
        ("one\n3\n1 2 3 4 0.5\n", "line 2 must be the number of rows, 1, got '3'"),
        ("one\n1\n1 2 3 4 inf\n", "line 3"),
        ("", "line 2 must be the number of rows, 0, got nothing"),
    ],
)
def test_malformed_rows_are_named(text, words):
    with pytest.raises(EvaluationError, match=words):
        parse_predictions(text, "a.txt")


def test_folders_and_archives(tmp_path):
    folder = tmp_path / "predictions"
    write_predictions(folder, KEY, [[0, 0, 20, 20.5], [1, 2, 3, 4]], [0.25, 0.75])
    assert (folder / "0--Parade" / "one.txt").read_text().splitlines()[:3] == ["one", "2", "1.00 2.00 2.00 2.00 0.75"]
    expected = [[1, 2, 2, 2, 0.75], [0, 0, 20, 20.5, 0.25]]
    for suffix in ("", ".tar", ".tar.gz", ".tar.xz"):
        source = folder
        if suffix:
            source = tmp_path / f"predictions{suffix}"
            with tarfile.open(source, f"w:{suffix[5:]}") as archive:
                archive.add(folder, "any/name")
        assert read_predictions(source)[KEY].tolist() == expected


def test_invalid_sources_of_predictions(tmp_path):
    with pytest.raises(EvaluationError, match="holds no prediction files"):
        read_predictions(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(EvaluationError, match="must be a folder or a tar archive"):
        read_predictions(tmp_path / "x.zip")
    (tmp_path / "a.tar").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match="must be a folder or a tar archive"):
        read_predictions(tmp_path / "a.tar")
    with pytest.raises(EvaluationError, match="must be a folder or a tar archive"):
        read_predictions(tmp_path / "gone")
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        archive.add(__file__, "e/a.txt")
    (tmp_path / "cut.tar.gz").write_bytes(whole.getvalue()[:100])
    with pytest.raises(EvaluationError, match="must be a folder or a tar archive"):
        read_predictions(tmp_path / "cut.tar.gz")
    random = np.random.default_rng(0)
    for mode in ("gz", "xz", "bz2"):  # damaged in the middle
        write_predictions(tmp_path / "e", KEY, random.random((2000, 4)), random.random(2000))
        with tarfile.open(tmp_path / "bad.tar", f"w:{mode}") as archive:
            archive.add(tmp_path / "e")
        content = bytearray((tmp_path / "bad.tar").read_bytes())
        content[len(content) // 2 : len(content) // 2 + 400] = random.bytes(400)
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(EvaluationError, match=r"bad\.tar"):
            read_predictions(tmp_path / "bad.tar")


def test_files_of_other_programs(tmp_path):
    folder = tmp_path / "0--Parade"
    write_predictions(tmp_path, KEY, [[0, 0, 20, 20]], [0.5])
    (folder / "._one.txt").write_bytes(b"\x00\x05\xff")  # as macOS adds
    (folder / "notes.md").write_text("no predictions")
    (folder / "one.txt").write_bytes(b"\xef\xbb\xbf" + (folder / "one.txt").read_bytes())  # a byte order mark
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(folder, "0--Parade")
    assert list(read_predictions(tmp_path)) == list(read_predictions(tmp_path / "all.tar")) == [KEY]
    (folder / "two.txt").write_text("two\n0\n", encoding="utf-16")
    with pytest.raises(EvaluationError, match=r"two.txt must be UTF-8 text"):
        read_predictions(tmp_path)
    (folder / "two.txt").unlink()
    write_predictions(tmp_path / "again", KEY, [[0, 0, 20, 20]], [0.5])
    with pytest.raises(
        EvaluationError, match=r"one.txt: predictions of 0--Parade/one must be given once, got others in "
    ):
        read_predictions(tmp_path)


def test_ground_truth_that_is_not_there(tmp_path):
    with pytest.raises(EvaluationError, match=r"must hold wider_face_val.mat.*got no wider_face_val.mat"):
        read_ground_truth(tmp_path)
    for name in ("face", *SUBSETS):
        (tmp_path / f"wider_{name}_val.mat").write_bytes(b"no MATLAB")
    with pytest.raises(EvaluationError, match="cannot be read as a MATLAB file"):
        read_ground_truth(tmp_path)


def write_ground_truth(folder, boxes, counted):
    """Official .mat files of one event with an image for each entry; `counted` are 1-based, by subset."""

    def cells(values):
        column = np.empty((len(values), 1), object)
        column[:, 0] = values
        return column

    names = [f"0_Parade_{k}" for k in range(len(boxes))]
    tables = {
        "event_list": cells(["0--Parade"]),
        "file_list": cells([cells(names)]),
        "face_bbx_list": cells([cells([np.array(of, np.float64).reshape(-1, 4) for of in boxes])]),
    }
    folder.mkdir(exist_ok=True)
    io_mat.savemat(folder / "wider_face_val.mat", tables)
    for subset in SUBSETS:
        lists = [np.array(of, np.uint8).reshape(-1, 1) for of in counted[subset]]
        io_mat.savemat(folder / f"wider_{subset}_val.mat", tables | {"gt_list": cells([cells(lists)])})
    return names


COUNTED = {"easy": [[1], []], "medium": [[1, 2], []], "hard": [[1, 2], [1]]}


def test_a_small_set_from_end_to_end(tmp_path):
    """Three faces in two images: easy counts the first, medium two of them, hard all."""
    names = write_ground_truth(tmp_path / "truth", [FACES, FACES[:1]], COUNTED)
    truth = read_ground_truth(tmp_path / "truth")
    assert list(truth) == [("0--Parade", name) for name in names]
    write_predictions(
        tmp_path / "found",
        ("0--Parade", names[0]),
        [[0, 0, 20, 20], [100, 0, 120, 20], [50, 50, 70, 70]],
        [0.9, 0.6, 0.8],
    )
    write_predictions(tmp_path / "found", ("0--Parade", names[1]), [[0, 0, 20, 20]], [0.3])
    figures = evaluate(read_predictions(tmp_path / "found"), truth).average_precision()
    assert figures["easy"] == pytest.approx(1)  # the face of 0.6 is not counted, nor that of 0.3 in the other image
    assert figures["medium"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert figures["hard"] == pytest.approx(1 / 3 + 2 / 3 * 3 / 4)


def test_ground_truth_with_other_content(tmp_path):
    write_ground_truth(tmp_path, [FACES], {name: [[3]] for name in SUBSETS})  # there is no third face
    with pytest.raises(EvaluationError, match="must be the files of WIDER FACE's evaluation tools"):
        read_ground_truth(tmp_path)
    io_mat.savemat(tmp_path / "wider_face_val.mat", {"something": np.zeros(3)})
    with pytest.raises(EvaluationError, match=r"got others .*event_list"):
        read_ground_truth(tmp_path)


@pytest.fixture(scope="module")
def truth():
    return read_ground_truth(DATA / "ground_truth")


# --- published results -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="the WIDER FACE files are not beside the repository")
class TestPublished:
    def test_counts(self, truth):
        assert len(truth) == 3226
        assert sum(len(of.boxes) for of in truth.values()) == 39708
        counts = {name: sum(int(of.counted[name].sum()) for of in truth.values()) for name in SUBSETS}
        assert counts == {"easy": 7211, "medium": 13319, "hard": 31958}

    @pytest.mark.parametrize(
        ("archive", "expected"),
        [("retinaface_a", (0.944837, 0.924471, 0.815325)), ("retinaface_b", (0.897867, 0.873266, 0.759436))],
    )
    def test_reference_figures(self, truth, archive, expected):
        result = evaluate(read_predictions(DATA / "predictions" / f"{archive}.tar.xz"), truth)
        assert tuple(result.average_precision()[name] for name in SUBSETS) == pytest.approx(expected, abs=1e-6)
        assert result.missing == result.unknown == []
