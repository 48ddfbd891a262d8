"""`pyface detect --track`: one id per person, in lines and in videos."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("trackers", reason="the package trackers is not installed")

from pyface.detections import Detections, Tracks
from pyface.io.video import VideoWriter, video
from pyface.models.base import Faces

WIDTH, HEIGHT, FRAMES = 320, 160, 30


@pytest.fixture
def write_video(tmp_path, fake_model, monkeypatch):
    """Writes a video whose grey levels number the frames: two faces pass each other, and a third one is weak."""

    def faces(image, score_threshold):
        k = round(image.float().mean().item() / 8) - 1
        boxes = [[10 + 5 * k, 20, 60 + 5 * k, 70], [250 - 5 * k, 90, 300 - 5 * k, 140], [150, 20, 160, 30]]
        scores = [0.9, 0.95 - 0.1 * (k % 2), 0.3]
        boxes = boxes[:2] if k in (3, 9) else boxes
        order = [1, 0, 2][: len(boxes)]  # the best is not always the same person
        boxes, scores = torch.tensor(boxes)[order].float(), torch.tensor(scores)[order]
        return Faces(boxes, scores, None)

    monkeypatch.setattr(fake_model, "faces", faces)

    def write(name="video.mp4"):
        with VideoWriter(tmp_path / name) as writer:
            for k in range(FRAMES):
                writer.write(np.full((HEIGHT, WIDTH, 3), 8 * (k + 1), np.uint8), k / 25)

    return write


def ids_by_person(lines):
    """The ids that the left, the right and the weak face had."""
    found = {"left": [], "right": [], "weak": []}
    for line in lines:
        for face in line["faces"]:
            x1, y1, x2, _ = face["box"]
            found["weak" if x2 - x1 < 20 else "left" if y1 < 50 else "right"].append(face["id"])
    return found


def test_one_id_per_person(run, write_video):
    write_video()
    lines = [json.loads(line) for line in run("detect", "video.mp4", "--track").stdout.splitlines()]
    found = ids_by_person(lines)
    for person in ("left", "right"):
        assert found[person][0] is None  # a track begins in the second frame
        assert len(set(found[person][1:])) == 1
        assert isinstance(found[person][1], int)
    assert found["left"][1] != found["right"][1]
    assert found["weak"] == [None] * (FRAMES - 2)


def test_videos_have_tracks_of_their_own_and_photos_none(run, write_video, write_grey):
    write_video("a.mp4")
    write_video("b.mp4")
    write_grey("c.png", 80, WIDTH, HEIGHT)
    run("detect", "a.mp4", "b.mp4", "c.png", "--track", "--output", "faces.csv")
    with open("faces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ids = {name: [row["id"] for row in rows if row["source"] == name] for name in ("a.mp4", "b.mp4", "c.png")}
    assert ids["a.mp4"] == ids["b.mp4"]
    assert len(set(ids["a.mp4"])) == 3  # two people, and ""
    assert set(ids["c.png"]) == {""}


def test_saved_videos_have_the_ids(run, write_video):
    write_video()
    run("detect", "video.mp4", "--save", "plain")
    run("detect", "video.mp4", "--save", "tracked", "--track")
    plain, tracked = ([image for _, image in video(f"{folder}/video.mp4")] for folder in ("plain", "tracked"))
    differences = [np.abs(a.astype(int) - b).max() for a, b in zip(plain, tracked, strict=True)]
    assert differences[0] < 40  # no tracks yet
    assert min(differences[1:]) > 80


def test_resume_begins_the_video_again(run, write_video):
    write_video()
    run("detect", "video.mp4", "--track", "--output", "faces.jsonl")
    whole = Path("faces.jsonl").read_bytes()
    Path("faces.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:10]))
    run("detect", "video.mp4", "--track", "--output", "faces.jsonl", "--resume")
    assert Path("faces.jsonl").read_bytes() == whole
    result = run("detect", "video.mp4", "--output", "faces.jsonl", "--resume", status=2)
    assert "made with track True, this command has track False" in result.stderr


def test_without_the_package(run, write_grey, monkeypatch):
    import importlib.util

    write_grey("a.png")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackers" else real(name))
    result = run("detect", "a.png", "--track", status=2)
    assert result.stderr == 'pyface: --track needs the package trackers: pip install "pyface-engine[track]"\n'


def test_frames_without_faces_and_sparse_frames():
    tracks = Tracks()
    face, nothing = (Detections(*given, None, 100, 100) for given in (([[10, 10, 50, 60]], [0.9]), ([], [])))
    found = [tracks.ids(faces, k / 25) for k, faces in enumerate([nothing, face, face, nothing, face])]
    assert found[0] == found[3] == []
    assert found[1] == [None]
    assert found[2] == found[4] != [None]
    sparse = Tracks()
    assert len({tuple(sparse.ids(face, float(k))) for k in range(1, 6)} - {(None,)}) <= 1
