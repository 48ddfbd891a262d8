"""`pyface evaluate faces --predictions` and `--format coco`: figures of pycocotools, formats, names and mistakes."""

import csv
import json
import random
from functools import partial

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pyface.cli import app
from pyface.data.folder import read_records
from pyface.evaluation.coco import FIGURES
from pyface.evaluation.predictions import read_predictions

# The statistics of pycocotools 2.0.11, by seed and whether the set is hostile; -1: nothing to count.
EXPECTED = {
    (0, False): [0.3426169, 0.6043543, 0.3854234, 0.4328876, 0.2416038, 0.3353795,
                 0.06981132, 0.4339623, 0.4981132, 0.5230769, 0.4928571, 0.4538462],
    (1, False): [0.2388839, 0.6372637, 0.03712871, 0.2326733, 0.2841584, -1,
                 0.05714286, 0.3285714, 0.3285714, 0.2333333, 0.4, -1],
    (2, False): [0.3115337, 0.6842953, 0.1983686, 0.3524037, 0.2546081, 0.3677164,
                 0.04607843, 0.2176471, 0.4401961, 0.4340909, 0.4133333, 0.4785714],
    (3, False): [0.3501889, 0.7342509, 0.206226, 0.4498097, 0.3092822, 0.3119205,
                 0.06, 0.425, 0.495, 0.5444444, 0.46, 0.45],
    (0, True): [0.269637, 0.4583386, 0.2202651, 0.3358361, 0.3875579, 0.182737,
                0.05641026, 0.1653846, 0.4474359, 0.4717391, 0.5, 0.2916667],
    (1, True): [0.1797235, 0.3538528, 0.1112683, 0.2861755, -1, 0,
                0, 0.4, 0.4, 0.45, -1, 0],
    (2, True): [0.3727858, 0.5885528, 0.3481281, 0.4461376, 0.3903597, 0.3511613,
                0.08387097, 0.4419355, 0.7225806, 0.6285714, 0.8166667, 0.76],
    (3, True): [0.2439491, 0.3535161, 0.2677151, 0.2652766, 0.4274684, 0.2693069,
                0.09090909, 0.4090909, 0.5136364, 0.5083333, 0.6285714, 0.2666667],
}  # fmt: skip


@pytest.fixture
def run(invoke):
    """Runs `pyface evaluate faces` in a temporary folder."""
    return partial(invoke, "evaluate", "faces")


@pytest.fixture
def data(tmp_path):
    """Two images of 100 x 80 with one face each, and one without, in COCO's format."""
    faces = {"day/a.png": [60, 40, 30, 30], "day/b.png": [50, 30, 20, 20]}
    images = [{"id": 10 + k, "file_name": name} for k, name in enumerate([*faces, "c.png"])]
    write_images(tmp_path / "data", images)
    annotations = [{"id": k, "image_id": 10 + k, "category_id": 1, "bbox": box} for k, box in enumerate(faces.values())]
    content = {"images": images, "annotations": annotations, "categories": []}
    (tmp_path / "data" / "truth.json").write_text(json.dumps(content))
    return tmp_path / "data"


def write_images(folder, images):
    for image in images:
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((80, 100, 3), np.uint8))


def detection(image, box, score=0.9, **more):
    return {"image_id": image, "category_id": 1, "bbox": box, "score": score} | more


def line(source, *boxes, score=0.5):
    faces = [{"box": [x, y, x + w, y + h], "score": score, "landmarks": None} for x, y, w, h in boxes]
    return {"source": source, "width": 100, "height": 80, "faces": faces, "error": None}


def write_lines(path, lines):
    path.write_text("".join(json.dumps(of) + "\n" for of in lines))


def make_set(seed: int, hostile: bool) -> tuple[dict, list[dict]]:
    """A random COCO set and results for it, the same on every machine.

    Hostile ones have crowds, ties, empty boxes, areas that are not the boxes', and more detections than are counted.
    """
    rng = random.Random(seed)
    truth, found, count = [], [], rng.randint(2, 8)

    def add(image, box, crowd):
        area = box[2] * box[3] * (rng.choice([1, 1, 0.6]) if hostile else 1)
        entry = {"image_id": image, "category_id": 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
        truth.append({"id": len(truth) + 1} | entry)

    def detect(image, box, score):
        score = round(score, 1) if hostile else score
        found.append({"image_id": image, "category_id": 1, "bbox": box, "score": score})

    for image in range(count):
        number = 0 if rng.random() < 0.2 else rng.randint(1, 12 if rng.random() < 0.9 else 120)
        for _ in range(number):
            side = 2 ** rng.uniform(2, 8)
            box = [rng.uniform(0, 500), rng.uniform(0, 500), side * rng.uniform(0.7, 1.4), side * rng.uniform(0.7, 1.4)]
            if hostile:
                box = [float(round(value)) for value in box] if rng.random() < 0.5 else box
                box[2] = 0.0 if rng.random() < 0.03 else box[2]
            add(image, box, hostile and rng.random() < 0.2)
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                near = [value + rng.gauss(0, 0.08) * box[2 + k % 2] for k, value in enumerate(box)]
                detect(image, list(box) if hostile and rng.random() < 0.3 else near, rng.random())
        for _ in range(rng.choice([0, 2, 10, 120]) if hostile else 4):
            corner, size = [rng.uniform(0, 500) for _ in "xy"], [rng.uniform(4, 200) for _ in "wh"]
            detect(image, corner + size, 0.6 * rng.random())
    images = [{"id": k, "file_name": f"{k}.png"} for k in range(count)]
    return {"images": images, "annotations": truth, "categories": [{"id": 1, "name": "face"}]}, found


@pytest.mark.parametrize(("seed", "hostile"), EXPECTED)
def test_figures_of_pycocotools(seed, hostile, run, tmp_path):
    truth, found = make_set(seed, hostile)
    write_images(tmp_path / "set", truth["images"])
    (tmp_path / "set" / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    result = run("--data", "set", "--predictions", "found.json", "--format", "coco", "--json", "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == list(FIGURES)
    got = [-1 if value is None else value for value in figures.values()]
    np.testing.assert_allclose(got, EXPECTED[seed, hostile], rtol=0, atol=1e-6)
    assert f"AP50   {figures['AP50']:.4f}" in result.stdout


def test_the_same_in_every_form(run, data, tmp_path):
    """COCO results by id and by name, a whole COCO file, JSON Lines and CSV with the same detections."""
    rows = {"day/a.png": [60, 40, 30, 27], "day/b.png": [0, 0, 20, 20]}
    (tmp_path / "ids.json").write_text(json.dumps([detection(10 + k, box) for k, box in enumerate(rows.values())]))
    (tmp_path / "names.json").write_text(json.dumps([detection(name[4:-4], box) for name, box in rows.items()]))
    images = [{"id": str(k), "file_name": f"/elsewhere/{name}"} for k, name in enumerate(rows)]
    whole = {"images": images, "annotations": [detection(str(k), box) for k, box in enumerate(rows.values())]}
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    write_lines(tmp_path / "lines.jsonl", [line(f"data/images/{name}", box, score=0.9) for name, box in rows.items()])
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["score", "source", "x1", "y1", "x2", "y2"])
        table.writerows([0.9, name.replace("/", "\\"), x, y, x + w, y + h] for name, (x, y, w, h) in rows.items())
    for name in ("ids.json", "names.json", "whole.json", "lines.jsonl", "table.csv"):
        result = run("--data", "data", "--predictions", name, "--json", "figures.json")
        figures = json.loads((tmp_path / "figures.json").read_text())
        assert figures["average_precision"] == {"0.5": 0.25, "0.4": 0.25}, name  # a hit and a miss of equal scores
        assert figures["pictures_per_second"] is None
        assert "best F1 0.500 at IoU 0.5 with scores of 0.9 or more" in result.stdout
        assert result.stderr == "1 image without predictions, counted as empty: c.png\n"


def test_results_of_pyface_detect(run, monkeypatch, fake_model, write_grey, tmp_path):
    """The files that `pyface detect` writes give the figures that the model gives."""
    from pyface.models import zoo

    monkeypatch.setattr(zoo, "create_model", lambda name, weights="default": fake_model)
    for name, level in (("a.png", 40), ("b.png", 120), ("c.png", 0)):
        write_grey(f"set/images/{name}", level, width=100, height=80)
    (tmp_path / "set" / "bbx_gt.txt").write_text(
        "a.png\n1\n0 0 50 40 0 0 0 0 0 0\nb.png\n2\n2 2 50 40 0 0 0 0 0 0\n60 60 9 9 0 0 0 0 0 0\nc.png\n0\n"
    )
    (tmp_path / "set" / "landmarks.txt").write_text("# a.png\n0 0 50 40 3 4 0 9 3 0 6 6 0 3 9 0 9 9 0 1\n")
    figures = {}
    for output in ("model", "faces.jsonl", "faces.csv", "faces.json"):
        given = ["--model", "mtcnn", "--device", "cpu"] if output == "model" else ["--predictions", output]
        if output != "model":
            detect = ["detect", "set/images", "--model", "mtcnn", "--device", "cpu", "--output", output]
            detect += ["--format", "coco"] if output == "faces.json" else []
            assert CliRunner().invoke(app, detect).exit_code == 0
        assert "without predictions" not in run("--data", "set", *given, "--json", "figures.json").stderr
        figures[output] = json.loads((tmp_path / "figures.json").read_text()) | {"pictures_per_second": None}
        error = pytest.approx(figures["model"]["landmark_error"], rel=1e-6)
        assert figures[output] == figures["model"] | {"landmark_error": error}
    assert figures["model"]["landmark_error"] > 0
    assert 0 < figures["model"]["average_precision"]["0.5"] < 1


def test_images_that_are_missing_or_unknown(run, data, tmp_path):
    write_lines(tmp_path / "some.jsonl", [line("day/a.png", [60, 40, 30, 30]), line("night/b.png", [0, 0, 9, 9])])
    result = run("--data", "data", "--predictions", "some.jsonl", "--worst", "worst")
    assert "2 images without predictions, counted as empty: day/b.png, c.png\n" in result.stderr
    assert "1 image not in the data, left out: night/b.png\n" in result.stderr
    assert [path.name for path in (tmp_path / "worst").iterdir()] == ["00_1_mistakes_b.jpg"]


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], "look like x1 y1 x2 y2 score, but must be x y w h score"),
        (lambda x, y, w, h: [x / 100, y / 80, w / 100, h / 80], "look like fractions of the image's width and height"),
    ],
)
def test_hint_for_boxes_in_another_form(run, data, tmp_path, convert, words):
    rows = [detection(10, convert(60, 40, 30, 30)), detection(11, convert(50, 30, 20, 20))]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    assert words in run("--data", "data", "--predictions", "found.json").stderr


def test_hint_for_sizes_in_lines(run, data, tmp_path):
    lines = [line("a.png") | {"faces": [{"box": [60, 40, 30, 30], "score": 1}]}]
    lines += [line("b.png") | {"faces": [{"box": [50, 30, 20, 20], "score": 1}]}]
    write_lines(tmp_path / "found.jsonl", lines)
    result = run("--data", "data", "--predictions", "found.jsonl")
    assert "look like x y w h score, but must be x1 y1 x2 y2 score" in result.stderr


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("f.txt", "", "f.txt must end with .json (COCO results), .jsonl or .csv"),
        ("f.json", "[", "f.json must be JSON, got '['"),
        ("f.json", "{}", "must be COCO results, a list of objects with image_id, bbox and score"),
        ("f.json", "[3]", "entry 0 must have image_id, bbox and score, got 3"),
        ("f.json", json.dumps([detection([1], [1, 2, 3, 4])]), "entry 0: image_id must be a number or text, got [1]"),
        ("f.json", json.dumps([detection(10, [1, 2, 3])]), "entry 0: the box must be four finite numbers"),
        ("f.json", json.dumps([detection(10, [1, 2, 3, 4], float("nan"))]), "entry 0: the box must be four finite"),
        ("f.json", json.dumps([detection(10, "x")]), "entry 0: the box must be four finite numbers"),
        ("f.json", json.dumps([detection(10, []), detection(10, [], category_id=2)]), "one category, faces, got"),
        ("f.json", json.dumps([detection(99, [1, 2, 3, 4])]), "in images of data, got none, but it names 99"),
        ("f.json", "[]", "must hold detections in images of data, got none"),
        ("f.jsonl", "{}\n", "line 1 must have source and faces"),
        ("f.jsonl", "\n{\n", "line 2 must be JSON"),
        ("f.jsonl", 2 * (json.dumps(line("a.png")) + "\n"), "line 2: an image must have one line"),
        ("f.csv", "source,x1\n", "must have the columns source, x1, y1, x2, y2, score, got no y1"),
        ("f.csv", "source,x1,y1,x2,y2,score\na.png,1,2,3,x,1\n", "f.csv, line 2: the box must be four finite numbers"),
    ],
)  # fmt: skip
def test_mistakes(run, data, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    result = run("--data", "data", "--predictions", name, status=2)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "faces needs --model, a detector to run, or --predictions, a file of detections; give one of them"),
        (["--model", "mtcnn", "--predictions", "x.json"], "give one of them"),
        (["--predictions", "x.json", "--size", "640"], "--size needs --model; leave it out"),
        (["--predictions", "gone.json"], "gone.json cannot be read: No such file or directory"),
    ],
)
def test_mistaken_options(run, data, arguments, words):
    assert words in run("--data", "data", *arguments, status=2).stderr


def test_numbers_in_names(tmp_path):
    """Ids made from names, as YOLO's programs write them, in a folder that has no ids."""
    write_images(tmp_path, [{"file_name": "000139.png"}, {"file_name": "x/285.png"}, {"file_name": "y/285.png"}])
    (tmp_path / "found.json").write_text(json.dumps([detection(139, [1, 2, 3, 4])]))
    images = read_records(tmp_path)
    assert [len(rows) for rows in read_predictions(tmp_path / "found.json", images).rows] == [1, 0, 0]
    (tmp_path / "found.json").write_text(json.dumps([detection(285, [1, 2, 3, 4])]))
    with pytest.raises(ValueError, match=r"entry 0: the name of an image must be unambiguous, got 285, which could be"):
        read_predictions(tmp_path / "found.json", images)
