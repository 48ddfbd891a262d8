"""`pyface evaluate`, end to end on small folders."""

import json
import os
import sys
import tarfile
from functools import partial

import cv2
import numpy as np
import pytest

from pyface.data.folder import read_folder
from pyface.detections import Detections
from pyface.evaluation import widerface
from pyface.evaluation.faces import mistakes, score


@pytest.fixture
def run(monkeypatch, invoke, fake_model):
    """Runs `pyface` with the fake model: one face for every 40 grey levels, each half an image wide."""
    from pyface.models import zoo

    monkeypatch.setattr(zoo, "create_model", lambda name, weights="default": fake_model)
    return partial(invoke, "evaluate")


@pytest.fixture
def data(tmp_path):
    """Two images of 100 x 80: in one the fake model's only face, in the other a face that it does not find."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    for name, level in (("a.png", 40), ("b.png", 0)):
        cv2.imwrite(str(images / name), np.full((80, 100, 3), level, np.uint8))
    (tmp_path / "data" / "bbx_gt.txt").write_text(
        "a.png\n1\n0 0 50 40 0 0 0 0 0 0\nb.png\n1\n10 10 20 20 0 0 0 0 0 0\n"
    )
    return tmp_path / "data"


def test_faces(run, data, tmp_path):
    result = run(
        *("faces", "--model", "mtcnn", "--data", data, "--device", "cpu", "--worst", "worst"),
        *("--json", "report.json", "--plot", "curves.png"),
    )
    assert "AP@0.5" in result.stdout
    assert "2 images" in result.stdout
    assert "best F1 0.667 at IoU 0.5 with --score-threshold 0.099" in result.stdout  # the score of the hit is 0.1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["average_precision"] == {"0.5": 0.5, "0.4": 0.5}
    assert report["by_size"]["32-64"] == {"faces": 1, "average_precision": {"0.5": 1.0, "0.4": 1.0}}
    assert report["by_size"]["16-32"]["faces"] == 1
    assert [path.name for path in (tmp_path / "worst").iterdir()] == ["00_1_mistakes_b.jpg"]
    assert cv2.imread(str(tmp_path / "curves.png")) is not None


def test_mistakes_of_an_image(data):
    a, _ = read_folder(data)
    found = Detections([[0, 0, 50, 40], [1, 0, 50, 40], [60, 60, 70, 70]], [0.9, 0.8, 0.7], None, 100, 80)
    for threshold, missed, false in (
        (0.85, [False], [False, False, False]),
        (0.75, [False], [False, True, False]),  # the same face twice
        (0.1, [False], [False, True, True]),
        (0.95, [True], [False, False, False]),
    ):
        is_missed, is_false = mistakes(a, found, threshold)
        assert is_missed.tolist() == missed
        assert is_false.tolist() == false
    assert score([a], [found], [0.5]).best_f1 == 1.0


@pytest.fixture
def places(data, tmp_path):
    """Paths given by mistake: an empty folder, files of another kind, detections without ground truth."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "images").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "bare" / "images" / "a.png"), np.zeros((80, 100, 3), np.uint8))
    (tmp_path / "notes.tar").write_text("no archive")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("a\n1\n10 10 20 20 0.5\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "FDDB-fold-01-ellipseList.txt").write_text("a\n1\n20 15 1.5 25 20  1\n")
    (tmp_path / "bad.txt").write_text("a\n1\n10 10 20 20 nan\n")


FACES = ("faces", "--model", "mtcnn", "--data")
WIDER = ("widerface", "--ground-truth")
FDDB = ("fddb", "--ground-truth", "lists", "--predictions")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*FACES, "gone"], "gone must hold a folder `images`"),
        ([*FACES, "empty"], "empty must hold a folder `images`"),
        ([*FACES, "full/a.txt"], "full/a.txt must hold a folder `images`"),
        (["faces", "--model", "mtcn", "--data", "data"], "there is no model 'mtcn'"),
        ([*FACES, "data", "--size", "640"], "size"),
        ([*FACES, "data", "--json", "gone/x.json"], "gone/x.json cannot be written: there is no gone"),
        ([*FACES, "data", "--json", "empty"], "empty cannot be written: it is a folder"),
        ([*FACES, "data", "--plot", "x.doc"], "x.doc must end with .png"),
        ([*FACES, "data", "--worst", "bad.txt"], "bad.txt cannot be created: File exists"),
        ([*WIDER, "data"], "widerface needs --predictions"),
        ([*WIDER, "data", "--predictions", "data"], "data must hold wider_face_val.mat"),
        ([*WIDER, "data", "--predictions", "x", "--model", "mtcnn"], "must be given together"),
        ([*WIDER, "data", "--predictions", "x", "--size", "640"], "--size needs --model; leave it out"),
        (["fddb", "--ground-truth", "lists"], "fddb needs --predictions"),
        ([*FDDB, "x", "--model", "mtcnn"], "--model needs --images"),
        ([*FDDB, "x", "--model", "mtcn", "--images", "bare/images"], "there is no model 'mtcn'"),
        ([*FDDB, "x", "--model", "mtcnn", "--images", "empty"], "empty must hold FDDB's images"),
        ([*FDDB, "full", "--model", "mtcnn", "--images", "bare/images"], "full must be an empty or new folder"),
        ([*FDDB, "bad.txt/out", "--model", "mtcnn", "--images", "bare/images"], "bad.txt/out cannot be written: Not a"),
        ([*FDDB, "bad.txt", "--model", "mtcnn", "--images", "bare/images"], "bad.txt must be a folder"),
        ([*FDDB, "empty"], "empty must hold detections"),
        ([*FDDB, "gone"], "gone must be a folder or a tar archive"),
        ([*FDDB, "notes.tar"], "notes.tar must be a folder or a tar archive"),
        ([*FDDB, "bad.txt"], "bad.txt, line 3 must be finite numbers"),
        (["fddb", "--ground-truth", "empty", "--predictions", "full"], "empty must hold FDDB's ellipse lists"),
    ],
)
def test_mistakes_of_the_user_are_one_sentence(run, places, arguments, words):
    result = run(*arguments, status=2)
    assert result.stderr.startswith("pyface: ")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert result.stdout == ""


def test_data_without_annotations(run, places, data):
    result = run("faces", "--model", "mtcnn", "--data", "bare", status=2)
    assert "bare has no annotations, so all its images count as having no faces" in result.stderr
    assert "bare: there are no annotated faces; average precision needs some" in result.stderr
    both = run("faces", "--model", "mtcnn", "--data", "bare", "--data", "data", "--device", "cpu")
    (data.parent / "bare" / "labels").mkdir()
    (data.parent / "bare" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert "annotations" not in run("faces", "--model", "mtcnn", "--data", "bare", "--device", "cpu").stderr
    assert "3 images" in both.stdout


@pytest.mark.parametrize(
    ("arguments", "module", "words"),
    [
        ([*FDDB, "full"], "scipy.optimize", "FDDB's matching needs scipy: pip install scipy"),
        ([*WIDER, "empty", "--predictions", "full"], "scipy.io", "WIDER FACE's ground truth needs scipy"),
        ([*FDDB, "full", "--plot", "x.png"], "matplotlib.figure", "plots need matplotlib: pip install matplotlib"),
    ],
)
def test_extras_that_are_not_installed(run, places, monkeypatch, arguments, module, words):
    monkeypatch.setitem(sys.modules, module, None)
    assert words in run(*arguments, status=2).stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_must_not_be_written_to(run, places, tmp_path):
    (tmp_path / "empty").chmod(0o500)
    assert "permission denied" in run(*FDDB, "full", "--json", "empty/x.json", status=2).stderr


def test_iou_thresholds_and_plots(run, data, tmp_path):
    # The detection is half an image, 50 x 40, of which the face has 36 x 40: an IoU of 0.72.
    (data / "bbx_gt.txt").write_text("a.png\n1\n0 0 36 40 0 0 0 0 0 0\n")
    arguments = [*FACES, data, "--device", "cpu", "--json", "x.json", "--plot", "x.svg"]
    run(*arguments, "--iou", 0.7, "--iou", 0.75, "--iou", 0.72)
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["average_precision"] == {"0.7": 1.0, "0.75": 0.0, "0.72": 1.0}
    assert report["pictures_per_second"] > 0
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


def test_the_worst_images(run, data, tmp_path):
    for name in ("c.png", "d.png"):
        cv2.imwrite(str(data / "images" / name), np.full((80, 100, 3), 80, np.uint8))
    with (data / "bbx_gt.txt").open("a") as file:
        file.write("c.png\n0\nd.png\n1\n1 1 50 40 0 0 0 1 0 0\n")  # two false faces; one of two is ignored
    (tmp_path / "out" / "worst").mkdir(parents=True)
    (tmp_path / "out" / "worst" / "07_9_mistakes_old.jpg").touch()  # of an earlier run
    result = run(*FACES, data, "--device", "cpu", "--worst", "out/worst")
    assert "the worst 2 of 2 images with mistakes are in out/worst: missed faces yellow" in result.stdout
    # At the threshold of the best F1, which is the score 0.1 of the only hit.
    names = sorted(path.name for path in (tmp_path / "out" / "worst").iterdir())
    assert names == ["00_2_mistakes_c.jpg", "01_1_mistakes_b.jpg"]
    picture = cv2.imread(str(tmp_path / "out" / "worst" / "01_1_mistakes_b.jpg"))
    assert picture.shape == (80, 100, 3)
    assert picture[10, 15:25, 1:].mean() > 150  # the missed face is drawn in yellow
    picture = cv2.imread(str(tmp_path / "out" / "worst" / names[0]))
    is_red = (picture[..., 2] > 180) & (picture[..., :2].max(2) < 110)
    assert is_red.sum() > 100  # and the false ones in red


def test_no_worst_images(run, data, tmp_path):
    (tmp_path / "faces.csv").write_text("source,x1,y1,x2,y2,score\na.png,0,0,50,40,0.9\nb.png,10,10,30,30,0.8\n")
    result = run(*FACES[:1], "--data", data, "--predictions", "faces.csv", "--worst", "worst")
    assert "no image has mistakes, so none is in worst" in result.stdout


def test_a_broken_image_is_named(run, data):
    (data / "images" / "b.png").write_bytes(b"no picture")
    result = run("faces", "--model", "mtcnn", "--data", data, "--device", "cpu", status=2)
    assert "all images must be readable to be evaluated" in result.stderr


def test_widerface_with_a_model(run, data, tmp_path, monkeypatch):
    event = data.parent / "val" / "0--Parade"
    event.parent.mkdir()
    (data / "images").rename(event)
    monkeypatch.setattr(widerface, "read_ground_truth", lambda folder: wider_truth("a", "c"))
    arguments = ["widerface", "--ground-truth", "x", "--model", "mtcnn", "--images", "val"]
    result = run(*arguments, "--device", "cpu", "--json", "wider.json")
    assert (
        (tmp_path / "widerface-mtcnn" / "0--Parade" / "a.txt").read_text().startswith("a\n1\n0.00 0.00 50.00 40.00 0.1")
    )
    assert "easy    0.5000" in result.stdout
    assert "1 image without predictions, counted as empty: 0--Parade/c" in result.stderr
    assert "1 image not in the ground truth: 0--Parade/b" in result.stderr
    report = json.loads((tmp_path / "wider.json").read_text())
    assert report["average_precision"]["hard"] == 0.5
    assert list(report["curves"]) == ["easy", "medium", "hard"]
    assert {len(column) for column in report["curves"]["hard"].values()} == {1000}
    assert "widerface-mtcnn must be an empty or new folder" in run(*arguments, "--device", "cpu", status=2).stderr


def wider_truth(*names, event="0--Parade"):
    counted = dict.fromkeys(widerface.SUBSETS, np.array([True]))
    return {(event, name): widerface.Image(np.array([[0.0, 0, 50, 40]]), counted) for name in names}


def test_widerface_images_that_do_not_fit(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(widerface, "read_ground_truth", lambda folder: wider_truth("a", "b"))
    arguments = ("widerface", "--ground-truth", "x", "--predictions", "out", "--model", "mtcnn", "--device", "cpu")
    images = data / "images"
    words = "images must hold the ground truth's images, event/image.jpg, got none"
    assert words in run(*arguments, "--images", images, status=2).stderr
    assert words in run(*arguments, "--images", tmp_path / "gone", status=2).stderr.replace("gone", "images")
    for name in ("val/0--Parade", "small/0--Parade"):
        (tmp_path / "both" / name).mkdir(parents=True)
        (tmp_path / "both" / name / "a.png").write_bytes((images / "a.png").read_bytes())
    assert "would share one prediction file" in run(*arguments, "--images", tmp_path / "both", status=2).stderr
    assert not (tmp_path / "out").exists()


def test_widerface_continues_after_a_broken_image(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(widerface, "read_ground_truth", lambda folder: wider_truth("a", "b"))
    (tmp_path / "val").mkdir()
    (data / "images").rename(tmp_path / "val" / "0--Parade")
    (tmp_path / "val" / "0--Parade" / "b.png").write_bytes(b"no picture")
    arguments = ("widerface", "--ground-truth", "x", "--predictions", "out", "--model", "mtcnn", "--device", "cpu")
    result = run(*arguments, "--images", "val", "--plot", "curves.png", status=1)
    assert "easy    0.5000" in result.stdout
    assert "1 image without predictions, counted as empty: 0--Parade/b" in result.stderr
    assert "b.png" in result.stderr.splitlines()[1]
    assert cv2.imread(str(tmp_path / "curves.png")) is not None
    (tmp_path / "val" / "0--Parade" / "a.png").write_bytes(b"no picture")
    result = run(*arguments, "--images", "val", "--predictions", "none", status=2)
    assert "a.png" in result.stderr
    assert "none holds no prediction files" in result.stderr


def test_widerface_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(widerface, "read_ground_truth", lambda folder: wider_truth(*(f"p{k:02d}" for k in range(15))))
    (tmp_path / "out" / "0--Parade").mkdir(parents=True)
    (tmp_path / "out" / "0--Parade" / "p00.txt").write_bytes(b"p00\r\n2\r\n9 9 5 5 1E-3\r\n0 0 50 40 9e-1\r\n")
    with tarfile.open("out.tar.gz", "w:gz") as archive:
        archive.add("out", "somewhere/out")
    for source in ("out", "out.tar.gz"):
        result = run("widerface", "--ground-truth", "x", "--predictions", source)
        assert result.stdout.split() == ["easy", "0.0667", "medium", "0.0667", "hard", "0.0667"]
        assert "14 images without predictions, counted as empty: 0--Parade/p01, " in result.stderr
        assert result.stderr.endswith("0--Parade/p10, and 4 more\n")
    (tmp_path / "out" / "0--Parade").rename(tmp_path / "out" / "wrong")
    result = run("widerface", "--ground-truth", "x", "--predictions", "out", status=2)
    assert "out holds no predictions for any of the ground truth's images" in result.stderr
    (tmp_path / "out" / "wrong" / "p00.txt").write_text("p00\n1\n0 0 1 1 nan\n")
    result = run("widerface", "--ground-truth", "x", "--predictions", "out", status=2)
    assert "p00.txt, line 3 must be five finite numbers" in result.stderr


# --- FDDB ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fddb(data, tmp_path):
    """Two folds of one image each, 100 x 80; the fake model finds a face of 50 x 40 in the first."""
    folder = tmp_path / "pictures" / "2002" / "07" / "19" / "big"
    folder.mkdir(parents=True)
    for k, name in enumerate(("a.png", "b.png"), 1):
        (data / "images" / name).rename(folder / f"img_{k}.png")
        text = f"2002/07/19/big/img_{k}\n1\n25 20 0 25 20  1\n"
        (tmp_path / f"FDDB-fold-{k:02d}-ellipseList.txt").write_text(text)
    return tmp_path


def test_fddb_with_a_model(run, fddb):
    arguments = ("fddb", "--ground-truth", ".", "--predictions", "out", "--model", "mtcnn", "--images", "pictures")
    result = run(*arguments, "--device", "cpu", "--json", "roc.json", "--plot", "roc.png", "--overlap", "exact")
    # The ellipse fills its box, pi / 4 of it, and is one of two faces.
    assert "0.5000" in result.stdout
    assert "0.3927" in result.stdout
    assert "2 images in 2 folds, 2 faces" in result.stdout
    assert "* the curve ends at 0 false positives" in result.stdout
    assert "this is not all of FDDB" in result.stderr
    report = json.loads((fddb / "roc.json").read_text())
    assert report["true_positive_rate"]["1000"] == {"discrete": 0.5, "continuous": pytest.approx(np.pi / 8)}
    assert report["roc"] == {
        "thresholds": [0.1],
        "discrete": [0.5],
        "continuous": [pytest.approx(np.pi / 8, abs=1e-6)],
        "false_positives": [0],
    }
    assert cv2.imread(str(fddb / "roc.png")) is not None
    assert (fddb / "out" / "fold-01-out.txt").read_text() == "2002/07/19/big/img_1\n1\n0.00 0.00 50.00 40.00 0.1\n"
    assert (fddb / "out" / "fold-02-out.txt").read_text() == "2002/07/19/big/img_2\n0\n"
    # The files that it wrote score the same.
    again = run("fddb", "--ground-truth", ".", "--predictions", "out", "--overlap", "exact")
    assert again.stdout == result.stdout
    assert "2 images of unknown size (--images gives it), so regions are not cut at their borders" in again.stderr


def test_fddb_cuts_regions_by_the_bundled_sizes(run, tmp_path):
    """A face and its detection that reach beyond the image's border by different lengths are equal within it."""
    key = "2002/08/11/big/img_591"  # 450 x 431 pixels
    (tmp_path / "FDDB-fold-01-ellipseList.txt").write_text(f"{key}\n1\n60 40 1.5707963 440 200  1\n")
    (tmp_path / "out.txt").write_text(f"{key}\n1\n400 140 120 120 0.9\n")
    arguments = ("fddb", "--ground-truth", ".", "--predictions", "out.txt", "--json", "roc.json")
    result = run(*arguments)
    assert "unknown size" not in result.stderr
    rate = json.loads((tmp_path / "roc.json").read_text())["true_positive_rate"]["100"]["continuous"]
    folder = tmp_path / "pictures" / "2002/08/11/big"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "img_591.jpg"), np.zeros((431, 450, 3), np.uint8))
    run(*arguments, "--images", "pictures")
    assert json.loads((tmp_path / "roc.json").read_text())["true_positive_rate"]["100"]["continuous"] == rate
    cv2.imwrite(str(folder / "img_591.jpg"), np.zeros((431, 900, 3), np.uint8))
    run(*arguments, "--images", "pictures")
    assert json.loads((tmp_path / "roc.json").read_text())["true_positive_rate"]["100"]["continuous"] < rate


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ("25 20 50 40 0.9", None),
        ("25 20 75 60 0.9", "look like x1 y1 x2 y2 score, but must be x y w h score"),
        ("0.9 25 20 50 40", "look like score x y w h, but must be x y w h score"),
        ("0.25 0.25 0.5 0.5 0.9", "look like fractions of the image's width and height, but must be pixels"),
    ],
)
def test_rows_in_another_form_are_recognised(run, tmp_path, columns, hint):
    key = "2002/08/11/big/img_591"
    (tmp_path / "FDDB-fold-01-ellipseList.txt").write_text(f"{key}\n1\n25 20 0 50 40  1\n")
    (tmp_path / "out.txt").write_text(f"{key}\n1\n{columns}\n")
    stderr = run("fddb", "--ground-truth", ".", "--predictions", "out.txt").stderr
    assert ("almost nothing matches" in stderr) is (hint is not None)
    if hint is not None:
        assert f"the rows of out.txt {hint}" in stderr


def test_fddb_with_images_that_are_missing_or_broken(run, fddb):
    folder = fddb / "pictures" / "2002" / "07" / "19" / "big"
    (folder / "img_2.png").unlink()
    arguments = ("fddb", "--ground-truth", ".", "--model", "mtcnn", "--images", "pictures", "--device", "cpu")
    result = run(*arguments, "--predictions", "out")
    assert "1 image not in pictures: 2002/07/19/big/img_2" in result.stderr
    assert "1 image without detections, counted as empty: 2002/07/19/big/img_2" in result.stderr
    assert "0.5000" in result.stdout
    (folder / "img_2.png").write_bytes(b"no picture")
    result = run(*arguments, "--predictions", "out2", status=1)
    assert result.stderr.count("img_2.png") == 1
    assert "0.5000" in result.stdout


def test_fddb_fits_ellipses(run, fddb):
    (fddb / "found.txt").write_text("2002/07/19/big/img_1\r\n1\r\n0 0 50 40 0.5\r\n")
    plain = run("fddb", "--ground-truth", ".", "--predictions", "found.txt", "--images", "pictures")
    fitted = run("fddb", "--ground-truth", ".", "--predictions", "found.txt", "--images", "pictures", "--fit-ellipses")
    assert plain.stdout != fitted.stdout
