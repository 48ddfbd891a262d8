"""Damaged annotations, predictions, results and configurations: right numbers, or the reader's own error."""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from pyface.data.annotations import DatasetError
from pyface.data.folder import read_folder
from pyface.evaluation import fddb, widerface
from pyface.evaluation.files import EvaluationError
from pyface.io.results import OutputError, ResultFile, csv_rows, failed, json_line
from tests.fuzz.faults import expect
from tests.fuzz.mutate import pick, text_of

WIDER = "a/1.png\n2\n1 2 30 40 0 0 0 0 0 0\n5 6 7 8 0 0 0 1 0 0\n2.png\n0\n0 0 0 0 0 0 0 0 0 0\n"
LANDMARKS = "# a/1.png\n1 2 30 40 " + "5.5 6 0 " * 5 + "1\n# 2.png\n"
YOLO = "0 0.5 0.5 0.25 0.5\n0 0.1 0.2 0.05 0.05\n"
YOLO_LANDMARKS = "0 0.5 0.5 0.25 0.5 " + " ".join(["0.4 0.5 2"] * 5) + "\n"
COCO = {
    "images": [{"id": 1, "file_name": "a/1.png", "width": 8, "height": 8}, {"id": 2, "file_name": "2.png"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0, "keypoints": [1, 2, 2] * 5},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4.5], "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "face"}],
}
PREDICTIONS = "a/1\n2\n1 2 3 4 0.5\n5 6 7 8 0.25\n"
ELLIPSES = "2002/a/img_1\n2\n30 20 1.2 50 60 1\n10 10 0 20 20 1\n2002/a/img_2\n1\n1 1 1 1 1 1\n"
FACE = {"box": [1.0, 2.0, 3.0, 4.0], "score": 0.5, "landmarks": [[1.0, 2.0]] * 5}
RESULTS = [{"source": "a.png", "width": 8, "height": 8, "faces": [FACE, FACE], "error": None}, failed('b,"\n.png', "x")]
VALUES = [None, True, -1, 0, 1.5, 1e39, 1e308, 10**400, float("nan"), "", "x", "\0", "a" * 300, [], [1], {}, {"a": 1}]


def run(rng: np.random.Generator) -> str:
    """Reads one damaged file in a folder of its own; returns "read" or "refused"."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        return pick(rng, TARGETS)(rng, folder)
    except (DatasetError, EvaluationError, OutputError):
        return "refused"
    finally:
        shutil.rmtree(folder)


def _images(folder: Path) -> None:
    data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    (folder / "images" / "a").mkdir(parents=True)
    for name in ("a/1.png", "2.png"):
        (folder / "images" / name).write_bytes(data)


def _read_folder(folder: Path) -> str:
    for picture in read_folder(folder):
        for boxes in (picture.faces, picture.ignore):
            expect(boxes.dtype == np.float32 and boxes.shape[1:] == (4,), f"boxes {boxes.dtype} {boxes.shape}")
            expect(bool(np.isfinite(boxes).all()), f"boxes that are not finite: {boxes.tolist()}")
            expect(bool((boxes[:, 2:] >= boxes[:, :2]).all()), f"boxes without a size: {boxes.tolist()}")
        expect(picture.landmarks.shape == (len(picture.faces), 5, 2), f"landmarks {picture.landmarks.shape}")
        expect(not np.isinf(picture.landmarks).any(), "infinite landmarks")
    return "read"


def _wider(rng: np.random.Generator, folder: Path) -> str:
    _images(folder)
    (folder / "bbx_gt.txt").write_bytes(text_of(rng, WIDER))
    if rng.random() < 0.5:
        (folder / "landmarks.txt").write_bytes(text_of(rng, LANDMARKS))
    return _read_folder(folder)


def _yolo(rng: np.random.Generator, folder: Path) -> str:
    _images(folder)
    (folder / "labels" / "a").mkdir(parents=True)
    name = pick(rng, ["2.txt", "a/1.txt", "2.txt", "3.txt", "classes.txt"])
    (folder / "labels" / name).write_bytes(text_of(rng, pick(rng, [YOLO, YOLO_LANDMARKS])))
    return _read_folder(folder)


def _coco(rng: np.random.Generator, folder: Path) -> str:
    _images(folder)
    content = spoiled_json(rng, COCO) if rng.random() < 0.8 else COCO
    text = json.dumps(content, indent=int(rng.integers(2)))
    (folder / "faces.json").write_bytes(text_of(rng, text) if rng.random() < 0.3 else text.encode())
    return _read_folder(folder)


def spoiled_json(rng: np.random.Generator, content):
    """A copy with one to three values replaced, removed or doubled."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.integers(1, 4)):
        at = content
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = pick(rng, keys)
            if isinstance(at[key], dict | list) and rng.random() < 0.8:
                at = at[key]
                continue
            match rng.integers(4):
                case 0:
                    del at[key]
                case 1 if isinstance(at, list):
                    at.append(copy.deepcopy(at[key]))
                case _:
                    at[key] = copy.deepcopy(pick(rng, VALUES))
            break
    return content


def _wider_predictions(rng: np.random.Generator, folder: Path) -> str:
    (folder / "a").mkdir()
    (folder / "a" / "1.txt").write_bytes(text_of(rng, PREDICTIONS))
    rows = widerface.read_predictions(folder)["a", "1"]
    expect(rows.dtype == np.float64 and rows.shape[1:] == (5,) and bool(np.isfinite(rows).all()), f"rows {rows}")
    return "read"


def _fddb(rng: np.random.Generator, folder: Path) -> str:
    lists, found = folder / "FDDB-fold-01-ellipseList.txt", folder / "found.txt"
    lists.write_bytes(text_of(rng, ELLIPSES))
    found.write_bytes(text_of(rng, ELLIPSES.replace("1.2 50 60 1", "50 60 0.5")))
    regions = [*fddb.read_annotations(lists).faces.values()]
    regions += [detected.regions for detected in fddb.read_detections(found).values()]
    for region in regions:
        expect(not np.isinf(region.rows).any(), f"regions that are not finite: {region.rows}")
    return "read"


def _results(rng: np.random.Generator, folder: Path) -> str:
    suffix, encode = pick(rng, [(".jsonl", json_line), (".csv", csv_rows)])
    path, other = folder / f"faces{suffix}", folder / f"whole{suffix}"
    with ResultFile(other) as file:
        for result in RESULTS:
            file.write(result)
    text = other.read_text(encoding="utf-8")
    path.write_bytes(text_of(rng, text) if rng.random() < 0.7 else text.encode())
    maker = json.dumps({"model": "x", "size": [1, 2]})
    if rng.random() < 0.5:
        spoiled = json.dumps(spoiled_json(rng, {"model": "x", "size": [1, 2]}))
        (folder / f"{path.name}.run.json").write_bytes(text_of(rng, maker) if rng.random() < 0.5 else spoiled.encode())
    with ResultFile(path, resume=True, made_by=json.loads(maker)) as file:
        expect(all(isinstance(source, str) for source in file.done), f"sources {list(file.done)}")
        file.write({**RESULTS[0], "source": "new.png"})
    expect(path.read_bytes().endswith(encode({**RESULTS[0], "source": "new.png"})), "the new result is not whole")
    return "read"


def _config(rng: np.random.Generator, folder: Path) -> str:
    from pyface.training.folder import read_config, write_config
    from pyface.training.recipes import Run, TrainingError

    path = folder / "config.json"
    write_config(Run("ssh", ("data",), ("val",)), path)
    text = path.read_text(encoding="utf-8")
    spoiled = json.dumps(spoiled_json(rng, json.loads(text)), indent=1)
    path.write_bytes(text_of(rng, text) if rng.random() < 0.5 else spoiled.encode())
    try:
        read_config(path)
    except TrainingError:
        return "refused"
    return "read"


TARGETS: list[Callable[[np.random.Generator, Path], str]] = [
    *(_wider, _yolo, _coco, _coco, _wider_predictions, _fddb, _results, _config),
]  # fmt: skip
