"""Exported detectors against the detectors that they were exported from, in onnxruntime, OpenVINO and torch.

The graph that torch traces is tested without a runtime, so the tests of the runtimes cover only what they add.
"""

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pyface.cli import app
from pyface.detector import FaceDetector
from pyface.export.decoding import PlainOps, best
from pyface.export.export import ExportRequest, export
from pyface.export.graph import Faces, Heads
from pyface.export.quantisation import kept_in_float
from pyface.models.checkpoints import CheckpointError
from pyface.models.exported import Description
from pyface.models.zoo import create_model, is_untrained

LITE = ("s3fd_lite", "srn_lite", "ssh_lite", "densebox_lite")
SCORE, PIXELS = 1e-4, 1e-2  # the largest differences


@pytest.fixture(scope="session")
def images(astronaut, gallery):
    """Photos at several sizes and crops, a collage, and one without faces."""
    photo, many = (cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in (astronaut, gallery))
    collage = np.concatenate([cv2.resize(photo[:320], (200, 128)), cv2.resize(photo, (200, 173))])
    return [photo, photo[20:301, 90:407], cv2.resize(photo, (97, 131)), many, collage, np.zeros((60, 90, 3), np.uint8)]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Exports a detector once: exported(".onnx", model="s3fd_lite", ...) -> the path."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def make(suffix: str, **options: object) -> Path:
        if suffix != ".pt2":
            pytest.importorskip("onnxscript", reason='needs pip install "pyface-engine[onnx]"')
            pytest.importorskip("onnxruntime", reason='needs pip install "pyface-engine[onnx]"')
        if suffix == ".xml":
            pytest.importorskip("openvino", reason='needs pip install "pyface-engine[openvino]"')
        key = (suffix, *sorted(options.items()))
        if key not in done:
            done[key] = folder / f"{len(done)}{suffix}"
            export(ExportRequest(**options), done[key])
        return done[key]

    return make


def assert_same(found, expected, score=SCORE, pixels=PIXELS):
    assert len(found) == len(expected)
    assert sum(map(len, expected))
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other)
        torch.testing.assert_close(one.scores, other.scores, atol=score, rtol=0)
        torch.testing.assert_close(one.boxes, other.boxes, atol=pixels, rtol=0)
        torch.testing.assert_close(one.landmarks, other.landmarks, atol=pixels, rtol=0)


def batch_of(images, model, size=(160, 192)):
    """Two images in one canvas, the second one smaller, and their sizes."""
    from pyface import ops

    sizes = [size, (size[0] - 37, size[1] - 21)]
    pixels = [torch.as_tensor(cv2.resize(images[k], sides[::-1])) for k, sides in enumerate(sizes)]
    preprocessing = model.preprocessing
    batch, _ = ops.letterbox(pixels, size, scales=[1.0, 1.0], mean=preprocessing.mean, std=preprocessing.std)
    return batch, torch.tensor(sizes), pixels


# --- the graph, in torch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", ["ap", "fast"])
@pytest.mark.parametrize("name", LITE)
def test_graph_equals_find(name, limits, images):
    model = create_model(name)
    model.score_threshold = 0.05  # DenseBox finds few of these faces in a single view
    batch, sizes, _ = batch_of(images, model)
    with torch.no_grad():
        expected = model.find(batch, sizes.float(), limits=limits)
        found = Faces(model, "normalised", limits)(batch, sizes)
    assert expected.count.sum() >= 1
    assert found["counts"].tolist() == expected.count.tolist()
    assert found["boxes"].shape == (2, model.limits[limits].detections, 4)
    for row, count in enumerate(expected.count.tolist()):
        for output in ("boxes", "scores", "landmarks"):
            torch.testing.assert_close(
                found[output][row, :count], getattr(expected, output)[row, :count], atol=1e-3, rtol=1e-5
            )
            assert not found[output][row, count:].any()


@pytest.mark.parametrize("name", ["s3fd_lite", "s3fd_vgg16"])  # RGB and BGR
def test_uint8_is_normalised_and_padded_in_the_graph(name, images):
    model = create_model(name, weights=None)
    batch, sizes, pixels = batch_of(images, model)
    if model.preprocessing.bgr:
        batch = batch.flip(1)
    raw = torch.full((2, *batch.shape[2:], 3), 200, dtype=torch.uint8)  # padding that the graph must ignore
    for k, image in enumerate(pixels):
        raw[k, : image.shape[0], : image.shape[1]] = image
    preprocess = Faces(model, "uint8", "ap").preprocess
    torch.testing.assert_close(preprocess(raw, sizes), batch, atol=1e-4, rtol=1e-5)


def test_candidates_beyond_the_limit_and_too_few():
    values, index = best(torch.tensor([[0.5, 2.0, 1.0]]), 2)
    assert (values.tolist(), index.tolist()) == ([[2.0, 1.0]], [[1, 2]])
    values, index = best(torch.tensor([[0.5, 2.0]]), 4)
    assert index.tolist() == [[1, 0, 0, 0]]
    assert (values > 0).tolist() == [[True, True, False, False]]


def test_one_threshold_per_level(images):
    """As the paper's SRN has."""
    torch.manual_seed(0)
    model = create_model("srn_lite", weights=None)
    batch, sizes, _ = batch_of(images, model, (64, 96))
    with torch.no_grad():
        maps = model(batch)
        thresholds = [0.001, 0.002, 0.0, 0.003, 0.0, 0.001]
        arguments = {"score_threshold": thresholds, "max_candidates": 5000, "sizes": sizes.float()}
        expected = model.candidates(maps, **arguments)
        with PlainOps():
            found = model.candidates(maps, **arguments)
    assert found.count.tolist() == expected.count.tolist()
    count = int(expected.count[0])
    assert 100 < count <= expected.boxes.shape[1] < found.boxes.shape[1] == 5000  # plain ops pad to the limit
    torch.testing.assert_close(found.boxes[0, :count], expected.boxes[0, :count], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("name", LITE)
def test_heads_are_the_maps(name):
    model = create_model(name)
    images = torch.randn(1, 3, 67, 95)  # odd sizes of maps: upsampling must still scale by 2
    with torch.no_grad():
        found, maps = Heads(model, "normalised")(images), model(images)
    expected = maps._asdict() if name == "densebox_lite" else maps[0]._asdict()
    for output, value in expected.items():
        if value is not None:
            torch.testing.assert_close(found[output if name == "densebox_lite" else f"{output}_0"], value)


def test_torch_export(exported):
    files = {"pyface": ""}
    program = torch.export.load(exported(".pt2", model="ssh_lite"), extra_files=files)
    assert json.loads(files["pyface"])["model"] == "ssh_lite"
    outputs = program.module()(images=torch.zeros(1, 3, 64, 96), sizes=torch.tensor([[64, 96]]))
    assert list(outputs) == ["boxes", "scores", "landmarks", "counts"]


# --- the runtimes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        (".onnx", "s3fd_lite"),
        *(pytest.param(".onnx", name, marks=pytest.mark.slow) for name in (*LITE, "mtcnn") if name != "s3fd_lite"),
        *((".xml", name) for name in ("s3fd_lite", "mtcnn")),
        (".pt2", "ssh_lite"),
    ],
)
def test_same_faces(suffix, name, exported, images):
    """Also for images smaller than a .pt2 file takes, and for none that MTCNN's second network would run on."""
    images = [*images, images[0][50:80, 180:215]]
    found = FaceDetector(str(exported(suffix, model=name)), device="cpu")(images)
    assert_same(found, FaceDetector(name, device="cpu")(images))


def test_mtcnn_is_three_files(exported, astronaut):
    path = exported(".onnx", model="mtcnn")
    assert {file.name for file in path.parent.glob(f"{path.stem}.*")} == {
        f"{path.stem}{part}.onnx" for part in ("", ".rnet", ".onet")
    }
    expected = FaceDetector("mtcnn", device="cpu", min_face=60, score_threshold=0.9)(astronaut)
    found = FaceDetector(str(path), device="cpu", min_face=60, score_threshold=0.9)(astronaut)
    assert_same([pickle.loads(pickle.dumps(found))], [expected])


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8(suffix, exported, images, tmp_path):
    """The network has int8 operators, and finds the same faces up to rounding."""
    pytest.importorskip("nncf", reason='needs pip install "pyface-engine[int8]"')
    for number, image in enumerate(images[:4]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image[:, :, ::-1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    path = exported(suffix, model="s3fd_lite", precision="int8", calibrate=tmp_path)
    original = exported(suffix, model="s3fd_lite")
    weights = (path.with_suffix(".bin"), original.with_suffix(".bin")) if suffix == ".xml" else (path, original)
    assert weights[0].stat().st_size < 0.7 * weights[1].stat().st_size
    found = FaceDetector(str(path), device="cpu", score_threshold=0.7)(images[:4])
    expected = FaceDetector("s3fd_lite", device="cpu", score_threshold=0.7)(images[:4])
    assert [len(faces) for faces in found] == [len(faces) for faces in expected]
    for one, other in zip(found, expected, strict=True):
        order = [(one.boxes[k] - other.boxes).abs().sum(1).argmin().item() for k in range(len(one))]
        torch.testing.assert_close(one.boxes, other.boxes[order], atol=4, rtol=0)


def test_what_int8_keeps_in_float():
    """The last convolutions and decoding are not quantised, even where these branch off within the network."""
    nodes = {
        "conv": ("Conv", []),
        "relu": ("Relu", ["conv"]),
        "heads": ("Conv", ["relu"]),
        "exp": ("Exp", ["heads"]),
        "shape": ("Shape", ["relu"]),
        "nms": ("NonMaxSuppression", ["exp", "shape"]),
    }
    assert kept_in_float(nodes) == ["heads", "exp", "shape", "nms"]
    assert kept_in_float(nodes, 2) == list(nodes)


def test_options(exported, images):
    path = str(exported(".onnx", model="s3fd_lite"))
    for options in (
        {"size": 320},
        {"size": "native", "tile": 256},
        {"min_face": 40.0},
        {"score_threshold": 0.9},
        {"multiscale": "srn"},
    ):
        expected = FaceDetector("s3fd_lite", device="cpu", **options)(images[:3])
        assert_same(FaceDetector(path, device="cpu", **options)(images[:3]), expected)


def test_fixed_size_uint8_and_fast(exported, images):
    path = exported(".onnx", model="s3fd_lite", size=(200, 320), input="uint8", limits="fast")
    detector = FaceDetector(str(path), device="cpu")
    found = detector([images[0], images[3]])
    assert [len(faces) for faces in found] == [1, len(FaceDetector("s3fd_lite", device="cpu", size=320)(images[3]))]
    expected = FaceDetector("s3fd_lite", device="cpu", size=200)(images[0])
    torch.testing.assert_close(found[0].boxes, expected.boxes, atol=1.0, rtol=0)  # resized pixels are rounded
    assert len(FaceDetector(str(path), device="cpu", min_face=400)(images[0])) == 0
    for option in ({"size": 320}, {"multiscale": "s3fd"}, {"tile": 128}):
        with pytest.raises(ValueError, match="takes images of 200 x 320 pixels only"):
            FaceDetector(str(path), **option)


def test_threads_and_pickling(exported, images):
    detector = FaceDetector(str(exported(".onnx", model="s3fd_lite")), device="cpu")
    expected = detector(images[0])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detector, [images[0]] * 4))
    assert_same([*found, pickle.loads(pickle.dumps(detector))(images[0])], [expected] * 5)


def test_onnx_file(exported):
    onnx = pytest.importorskip("onnx", reason='needs pip install "pyface-engine[onnx]"')
    model = onnx.load(exported(".onnx", model="s3fd_lite"))
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not model.functions
    assert [value.name for value in model.graph.input] == ["images", "sizes"]
    assert [value.name for value in model.graph.output] == ["boxes", "scores", "landmarks", "counts"]
    names = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input
    ]
    assert names == [["batch", 3, "height", "width"], ["batch", 2]]
    description = Description.read({entry.key: entry.value for entry in model.metadata_props}, "x")
    assert (description.model, description.outputs, description.size) == ("s3fd_lite", "faces", None)
    original = create_model("s3fd_lite")
    thresholds = (original.score_threshold, original.nms_threshold)
    assert (description.score_threshold, description.nms_threshold) == thresholds
    assert "research-only" in description.licence
    assert str(Path(__file__).parents[2]) not in model.SerializeToString().decode("latin-1")


def test_refusals(exported, tmp_path):
    path = str(exported(".onnx", model="s3fd_lite"))
    assert not is_untrained(path)
    for options, message in (
        ({"score_threshold": 0.01}, r"score_threshold must be 0\.\d+ or more for .*, got 0\.01"),
        ({"precision": "fp16"}, "precision is fixed"),
        ({"limits": "fast"}, "limits are fixed"),
        ({"multiscale": "ssh"}, "candidates before suppression"),
        ({"weights": "other.safetensors"}, "weights must be left out"),
    ):
        with pytest.raises(ValueError, match=message):
            FaceDetector(path, **options)
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        FaceDetector(str(tmp_path / "broken.onnx"))
    with pytest.raises(FileNotFoundError, match="there is no file"):
        FaceDetector(str(tmp_path / "none.onnx"))


def test_exported_files_cannot_be_exported(exported, tmp_path):
    with pytest.raises(ValueError, match="MODEL must be a name"):
        export(ExportRequest(str(exported(".onnx", model="s3fd_lite"))), tmp_path / "again.onnx")


@pytest.mark.parametrize(
    ("suffix", "module", "extra"), [(".onnx", "onnxscript", "onnx"), (".xml", "openvino", "openvino")]
)
def test_missing_packages_are_reported_before_the_graph_is_traced(suffix, module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "pyface.export.suppression", raising=False)
    monkeypatch.delattr(torch.export, "export")
    with pytest.raises(ImportError, match=rf'needs {module}: pip install "pyface-engine\[{extra}\]"'):
        export(ExportRequest("s3fd_lite"), tmp_path / f"out{suffix}")


def test_int8_without_nncf(images, monkeypatch, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), images[2])
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ImportError, match=r'--int8 needs nncf: pip install "pyface-engine\[int8\]"'):
        export(ExportRequest("s3fd_lite", precision="int8", calibrate=tmp_path), tmp_path / "out.onnx")


# --- the command -----------------------------------------------------------------------------------------------------


def test_detect_with_a_file(exported, astronaut):
    path = exported(".onnx", model="s3fd_lite")
    found = CliRunner().invoke(app, ["detect", str(astronaut), "--model", str(path), "--device", "cpu"])
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout)["faces"]) == 1


def test_export_heads_in_half_precision(tmp_path):
    pytest.importorskip("onnxscript", reason='needs pip install "pyface-engine[onnx]"')
    onnxruntime = pytest.importorskip("onnxruntime", reason='needs pip install "pyface-engine[onnx]"')
    path = tmp_path / "heads.onnx"
    arguments = ["export", "ssh_lite", str(path), "--heads", "--size", "96x128", "--precision", "fp16"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines() == [
        f"pyface: exporting ssh_lite to {path}, which takes up to a minute",
        f"{path}: ssh_lite, heads of images of 96 x 128 pixels, fp16",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["heads.onnx"]
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 96, 128)
    found = session.run(["logits_0", "boxes_2", "landmarks_1"], {"images": images.numpy()})
    with torch.no_grad():
        maps = create_model("ssh_lite")(images)
    for value, expected in zip(found, (maps[0].logits, maps[2].boxes, maps[1].landmarks), strict=True):
        torch.testing.assert_close(torch.from_numpy(value), expected, atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="returns raw maps"):
        FaceDetector(str(path))
    again = CliRunner().invoke(app, arguments)
    assert (again.exit_code, "add --overwrite" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mtcnn", "OUT.onnx", "--heads"], "all options but --weights must be left out for mtcnn"),
        (["mtcnn", "OUT.pt2"], "OUT must end with .onnx or .xml for mtcnn, got OUT.pt2"),
        (["s3fd_lite", "OUT.onnx", "--int8"], "--int8 and --calibrate DIR must be given together"),
        (
            ["s3fd_lite", "OUT.pt2", "--int8", "--calibrate", "."],
            "--int8 must be used for faces",
        ),
        (["s3fd_lite", "OUT.onnx", "--int8", "--calibrate", "none"], "there is no such file or folder"),
        (["s3fd_vgg16", "OUT.onnx"], "no default weights"),
        (["s3fd_lite", "OUT.tflite"], "OUT must end with .onnx, .xml or .pt2, got OUT.tflite"),
        (["s3fd_lite", "OUT.onnx", "--size", "640"], "--size must be HEIGHTxWIDTH"),
        (["s3fd_lite", "OUT.onnx", "--precision", "int4"], "--precision must be fp32 or fp16, got int4"),
        (["s3fd_lite", "none/OUT.onnx"], "cannot be written: there is no"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    path = tmp_path / "out.onnx"
    done = CliRunner().invoke(app, ["export", "s3fd_lite", str(path)])
    assert (done.exit_code, done.stderr) == (2, f"pyface: {path} cannot be written: permission denied\n")
