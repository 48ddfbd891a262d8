"""The programs in examples/ do what they say, and are short."""

import importlib.util
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import pyface
from pyface.io.images import read_image

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPES = ["privacy", "recognise", "service", "ssd", "video", "workers"]


def load(name):
    """A program as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(astronaut, gallery, tmp_path):
    """A folder with two photos, and a photo that is damaged; the first was taken at a known place."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(astronaut) as photo:
        exif = photo.getexif()
        exif.get_ifd(0x8825)[1] = "N"
        photo.resize((256, 256)).save(folder / "a.jpg", exif=exif)
    (folder / "b.jpg").write_bytes(gallery.read_bytes())
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_length(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40


def test_video(astronaut, tmp_path, capsys):
    pytest.importorskip("av", reason="PyAV is not installed")
    pytest.importorskip("trackers", reason="trackers is not installed")
    photo = cv2.resize(read_image(astronaut), (256, 256), interpolation=cv2.INTER_AREA)
    with pyface.VideoWriter(tmp_path / "video.mp4") as writer:
        for k in range(8):
            writer.write(photo if k < 6 else np.full_like(photo, 90), k / 4)
    load("video").main(str(tmp_path / "video.mp4"), str(tmp_path / "drawn.mp4"))
    assert capsys.readouterr().out == f"1 people in {tmp_path / 'drawn.mp4'}\n"
    drawn = list(pyface.video(tmp_path / "drawn.mp4"))
    assert [place.time for place, _ in drawn] == pytest.approx([k / 4 for k in range(8)], abs=1e-3)
    assert np.abs(drawn[0][1].astype(int) - photo).max() > 80  # the box
    assert np.abs(drawn[7][1].astype(int) - 90).max() < 20


def test_privacy(photos, tmp_path, capsys):
    (photos / "c.jpg").write_bytes(b"damaged")
    load("privacy").main(str(photos), str(tmp_path / "out"))
    out, err = capsys.readouterr()
    names, counts = zip(*(line.split()[:2] for line in out.splitlines()), strict=True)
    assert names == ("a.jpg:", "b.jpg:")
    assert int(counts[0]) >= 1
    assert int(counts[1]) >= 9
    assert "c.jpg" in err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "b.jpg"]
    before, after = (read_image(folder / "a.jpg")[40:70, 95:130].astype(float) for folder in (photos, tmp_path / "out"))
    assert np.abs(cv2.Laplacian(after, cv2.CV_64F)).mean() < 0.2 * np.abs(cv2.Laplacian(before, cv2.CV_64F)).mean()
    with Image.open(photos / "a.jpg") as photo, Image.open(tmp_path / "out" / "a.jpg") as copy:
        assert photo.getexif().get_ifd(0x8825)
        assert not copy.getexif().get_ifd(0x8825)


def test_recognise(photos, tmp_path, capsys):
    """With a network that returns the pixels: a face is most similar to itself."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    made = onnx.helper.make_node("Flatten", ["images"], ["vectors"])
    sizes = {"images": ["n", 3, 112, 112], "vectors": ["n", 3 * 112 * 112]}
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, of) for name, of in sizes.items()]
    model = onnx.helper.make_model(onnx.helper.make_graph([made], "g", values[:1], values[1:]), ir_version=8)
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "net.onnx")
    recognise = load("recognise")
    recognise.main(str(tmp_path / "net.onnx"), str(photos / "a.jpg"), str(photos / "b.jpg"))
    similarity = np.array(capsys.readouterr().out.replace("[", "").replace("]", "").split(), float)
    assert len(similarity) == 9
    assert 0.9 < similarity.max() <= 1
    chips = np.zeros((1, 112, 112, 3), np.uint8)
    chips[0, 0, 0] = [255, 0, 255]
    given = recognise.network_input(chips)
    assert (given.dtype, given.shape) == (np.float32, (1, 3, 112, 112))
    assert given[0, :, 0, 0].tolist() == [1, -1, 1]


def test_service(photos):
    pytest.importorskip("httpx", reason="httpx is not installed")
    testclient = pytest.importorskip("fastapi.testclient", reason="fastapi is not installed")
    client = testclient.TestClient(load("service").app)
    found = client.post("/faces", files={"photo": ("b.jpg", (photos / "b.jpg").read_bytes())}).json()
    assert len(found["faces"]) == 9
    refused = client.post("/faces", files={"photo": io.BytesIO(b"no image")})
    assert refused.status_code == 422
    assert "image" in refused.json()["detail"]


def test_workers(photos, capsys):
    load("workers").main(str(photos), "1")
    assert capsys.readouterr().out == "a.jpg: 1 faces\nb.jpg: 9 faces\n"


def test_ssd(photos, tmp_path, capsys, monkeypatch):
    """On the gallery, the loss falls within 30 steps."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.jpg").write_bytes((photos / "b.jpg").read_bytes())
    boxes = [(135, 106, 127, 154), (478, 77, 85, 103), (757, 77, 85, 103), (464, 328, 71, 85), (685, 328, 71, 85)]
    rows = [" ".join(map(str, box)) + " 0 0 0 0 0 0\n" for box in boxes]
    (tmp_path / "bbx_gt.txt").write_text(f"b.jpg\n{len(rows)}\n{''.join(rows)}")
    monkeypatch.setattr("sys.argv", ["ssd.py", str(tmp_path), "30"])
    load("ssd")
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
