"""`pyface benchmark`, and that its stages are told apart correctly."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from pyface import FaceDetector
from pyface.benchmark import MOST_IMAGES, STAGES, StageClock, find_images, measure, stand_in_threshold
from pyface.models import zoo
from pyface.ops import extension

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(invoke):
    """Runs `pyface benchmark`, briefly."""
    return partial(invoke, "benchmark", "--seconds", "0.1", "--batch-size", "1")


@pytest.fixture
def folder(tmp_path, astronaut):
    """A folder with one small image."""
    import cv2

    path = tmp_path / "pictures" / "small.jpg"
    path.parent.mkdir()
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(astronaut)), (160, 160), interpolation=cv2.INTER_AREA))
    return path.parent


def test_table_and_json(run, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.REGISTRY, "s3fd_lite", replace(zoo.model_info("s3fd_lite"), weights=None))
    result = run(
        "--model", "mtcnn", "--model", "s3fd_lite", "--images", folder, "--device", "cpu", "--json", "out.json"
    )
    for word in ("mtcnn", "s3fd_lite *", "images/s", "random weights", "threads", torch.__version__):
        assert word in result.stdout
    content = json.loads((tmp_path / "out.json").read_text())
    assert [of["model"] for of in content["models"]] == ["mtcnn", "s3fd_lite"]
    assert [of["random_weights"] for of in content["models"]] == [False, True]
    for of in content["models"]:
        assert list(of["stages"]) == list(STAGES)
        assert min(of["stages"].values()) > 0
        assert of["pictures_per_second"] > 0
        assert of["peak_rss"] > 50 * 2**20
        assert of["peak_cuda"] is None
    assert content["machine"]["threads"] == torch.get_num_threads()


@pytest.mark.slow
def test_runtimes_side_by_side(run, folder, tmp_path):
    pytest.importorskip("onnxscript", reason='needs pip install "pyface-engine[onnx]"')
    pytest.importorskip("onnxruntime", reason='needs pip install "pyface-engine[onnx]"')
    arguments = ["--model", "mtcnn", "--runtimes", "--images", folder, "--size", "320"]
    run("--model", "ssh_lite", *arguments, "--json", tmp_path / "speed.json")
    found = {of["model"]: of["faces"] for of in json.loads((tmp_path / "speed.json").read_text())["models"]}
    assert {"mtcnn", "mtcnn.onnx", "ssh_lite", "ssh_lite.onnx"} <= set(found)
    assert set(found.values()) == {1.0}
    assert "--runtimes is for fp32" in run(*arguments, "--precision", "bf16", status=2).stderr


def test_sizes_do_not_apply_to_mtcnn(run, folder):
    result = run("--model", "mtcnn", "--model", "ssh_lite", "--images", folder, "--size", "96", "--device", "cpu")
    assert "do not apply to mtcnn" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "mtcn"], "Did you mean 'mtcnn'"),
        (["--model", "mtcnn", "--size", "640"], "--size and --precision must be left out for mtcnn"),
        (["--images", "nowhere"], "there is no such file or folder"),
        (["--images", "empty"], "there are no images in this folder"),
        (["--images", "broken"], "bad.jpg"),
        (["--device", "cuda:99", "--images", "pictures"], "device 'cuda:99' cannot be used"),
        (["--model", "s3fd_lite", "--size", "big", "--images", "pictures"], "--size must be native"),
        (["--model", "s3fd_lite", "--precision", "fp8", "--images", "pictures"], "precision must be"),
    ],
)
def test_mistakes_are_one_sentence(run, folder, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    result = run(*arguments, status=2)
    assert result.stderr.startswith("pyface: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_written(run, folder):
    """The command fails before anything is timed."""
    result = run("--model", "mtcnn", "--images", folder, "--device", "cpu", "--json", "no/such/folder.json", status=2)
    assert "folder.json cannot be written: there is no no/such" in result.stderr
    assert result.stdout == ""


def test_default_images(monkeypatch, tmp_path):
    import pyface.benchmark as module

    examples = sorted((ROOT / "examples").glob("*.jpg"))
    assert find_images(None) == [path.read_bytes() for path in examples]
    # As installed, without the folder beside the package.
    monkeypatch.setattr(module, "__file__", str(tmp_path / "pyface" / "benchmark.py"))
    assert find_images(None) == [(ROOT / "examples" / "astronaut.jpg").read_bytes()]


def test_large_folders_are_thinned(write_grey, tmp_path):
    for k in range(MOST_IMAGES + 1):
        write_grey(f"many/{k:03}.png", level=k)
    found = find_images(tmp_path / "many")
    assert len(found) == 33  # every second one
    assert found[1] == (tmp_path / "many" / "002.png").read_bytes()


class Slow(torch.nn.Module):
    """Waits before it returns."""

    def __init__(self, net: torch.nn.Module, seconds: float) -> None:
        super().__init__()
        self.net, self.seconds = net, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.net(x)


def test_stages_are_told_apart(astronaut, monkeypatch):
    detector = FaceDetector("mtcnn", device="cpu")
    detector.model.onet = Slow(detector.model.onet, 0.2)
    kernel = extension._CPU["crop_resize"]

    def slow_crops(*arguments):
        if arguments[5] == 48:  # the height of the third network's crops
            time.sleep(0.4)
        kernel(*arguments)

    monkeypatch.setitem(extension._CPU, "crop_resize", slow_crops)
    start = time.perf_counter()
    with StageClock(detector) as clock:
        clock.enter("letterbox")
        detector(str(astronaut))
    total = time.perf_counter() - start
    assert 0.2 < clock.seconds["network"] < total - 0.4
    assert 0.4 < clock.seconds["letterbox"] < total - 0.2
    assert sum(clock.seconds.values()) <= total
    assert not extension._observers
    assert not detector.model.pnet._forward_hooks


@pytest.mark.parametrize("name", ["densebox_lite", "s3fd_lite"])
def test_random_weights_bring_a_realistic_number_of_candidates(name, astronaut):
    torch.manual_seed(0)
    detector = FaceDetector(name, weights=None, device="cpu")
    detector.score_threshold = stand_in_threshold(detector, [astronaut.read_bytes()], candidates=50)
    counts = []

    def count(model, inputs, maps):
        found = model.candidates(maps, score_threshold=detector.score_threshold, max_candidates=1000)
        counts.append(found.count.sum().item())

    detector.model.register_forward_hook(count)
    detector(str(astronaut))
    assert sum(counts) == pytest.approx(50, abs=5)


def test_measure_needs_images_and_time(fake_detector):
    with pytest.raises(ValueError, match="one image or more"):
        measure(fake_detector, [])
    with pytest.raises(ValueError, match="seconds must be more than 0"):
        measure(fake_detector, [b""], seconds=0)


def test_measure_works_for_any_model(fake_detector, write_grey):
    """A model that calls neither an op nor a network spends no time in the network."""
    timing = measure(fake_detector, [write_grey("a.png").read_bytes()], seconds=0.05)
    assert timing.faces == 1
    assert timing.pictures == 6
    assert timing.stages["network"] == 0


@pytest.mark.cuda
def test_on_a_gpu(run, folder, cuda, tmp_path):
    run("--model", "s3fd_lite", "--images", folder, "--device", cuda, "--precision", "fp16", "--json", "out.json")
    of = json.loads((tmp_path / "out.json").read_text())["models"][0]
    assert of["peak_cuda"] > 0
    assert min(of["stages"].values()) > 0
