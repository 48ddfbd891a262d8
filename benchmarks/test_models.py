"""Detectors: their networks alone, what follows the networks alone, and from the bytes of a JPEG file to faces.

Weights are random where pyface has none; thresholds then let some 300 candidates per image pass, as an image with
a dozen faces has. "pyface" is the network as `FaceDetector` runs it: eager, batch normalisation folded, in the memory
format that suits it.

Floor of the networks on two Zen 4 cores: about 100 G multiply-adds per second; at 640 x 640 a lite network has 2.9 G
(S3FD), 3.4 G (SSH), 4.2 G (SRN). The aim for the lite networks is 40 ms, and 60 ms for SRN.
"""

import os
from functools import cache
from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor

from pyface import FaceDetector, ops
from pyface.benchmark import CANDIDATES, stand_in_threshold
from pyface.io.images import read_image
from pyface.models.inference import IMAGENET_MEAN, IMAGENET_STD
from pyface.models.single_shot import SingleShot
from pyface.models.zoo import create_model, model_info
from pyface.ops import reference

GALLERY = Path(__file__).parents[1] / "examples" / "gallery.jpg"
LITE = ["densebox_lite", "s3fd_lite", "srn_lite", "ssh_lite"]
PAPER = ["densebox_vgg19", "s3fd_vgg16", "srn_resnet50", "ssh_vgg16"]
RELATIVE_ERROR = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.02}  # of a map's largest value


def case(*values: object, slow: bool = False):
    return pytest.param(*values, marks=[pytest.mark.slow] if slow else [])


def precision_of(name: str, device: str) -> str:
    """Half precision is float16 on CUDA and bfloat16 on the CPU, whose cores support no other."""
    return "fp32" if name == "fp32" else "fp16" if device == "cuda" else "bf16"


@cache
def detector_of(name: str, device: str, precision: str, **options: object) -> FaceDetector:
    """A detector whose threshold suits its weights."""
    torch.manual_seed(0)
    if name != "mtcnn":
        options |= {"precision": precision, "channels_last": True if device == "cuda" else None}
    return FaceDetector(name, weights=weights_of(name), device=device, **options)


def weights_of(name: str) -> str | None:
    return "default" if model_info(name).weights else None


@pytest.fixture(autouse=True, scope="module")
def forget():
    yield
    detector_of.cache_clear()


def network_of(name: str, device: str, precision: str) -> SingleShot:
    return detector_of(name, device, precision).model


def picture(batch: int, side: int, model: SingleShot) -> Tensor:
    """A batch of one photo as the network takes it; noise shows larger errors of bf16 than any image."""
    photo = torch.from_numpy(cv2.resize(read_image(GALLERY), (side, side))).permute(2, 0, 1).float()
    mean, std = (torch.tensor(of)[:, None, None] for of in (IMAGENET_MEAN, IMAGENET_STD))
    return ((photo - mean) / std).expand(batch, -1, -1, -1).contiguous().to(model.device, model.dtype)


def flat(maps: object) -> list[Tensor]:
    """All tensors in the output of a network."""
    if isinstance(maps, Tensor):
        return [maps]
    return [] if maps is None else [tensor for part in maps for tensor in flat(part)]


def assert_same_maps(found: object, expected: object, precision: str) -> None:
    for a, b in zip(flat(found), flat(expected), strict=True):
        assert (a.float() - b.float()).abs().max() <= RELATIVE_ERROR[precision] * b.float().abs().max()


NETWORKS = [
    *(case(name, batch, side, "fp32") for name in LITE for batch, side in ((1, 640), (8, 320), (32, 320))),
    *(case(name, 1, 640, "half") for name in LITE),
    *(case(name, batch, 640, p, slow=True) for name in LITE for batch in (8, 32) for p in ("fp32", "half")),
    *(case(name, 1, 192, "fp32") for name in PAPER),
    *(case(name, batch, 640, p, slow=True) for name in PAPER for batch in (1, 8) for p in ("fp32", "half")),
]
VARIANTS = ["pyface", "torch eager, as built", case("torch.compile", slow=True), "CUDA graph"]


@pytest.mark.parametrize("library", VARIANTS)
@pytest.mark.parametrize(("name", "batch", "side", "precision"), NETWORKS)
@torch.inference_mode()
def test_network(name, batch, side, precision, library, device, timed):
    if library == "CUDA graph" and device == "cpu":
        pytest.skip("CUDA graphs need a GPU")
    if library != "pyface" and device == "cpu" and (name in PAPER or batch > 8):
        pytest.skip("shows nothing beyond the smaller ones on a CPU")
    precision = precision_of(precision, device)
    model = network_of(name, device, precision)
    layout = torch.channels_last if device == "cuda" or model.channels_last else torch.contiguous_format
    images = picture(batch, side, model).contiguous(memory_format=layout)
    torch.manual_seed(0)
    as_built = create_model(name, weights_of(name)).to(device)
    expected = as_built(images[:1].float())
    assert_same_maps([tensor[:1] for tensor in flat(model(images))], flat(expected), precision)
    if library == "torch eager, as built":
        network, images = as_built.to(model.dtype), images.contiguous()
    elif library == "torch.compile":
        network = torch.compile(model, fullgraph=True)
        assert_same_maps(network(images), model(images), precision)
    else:
        network = model
    call = captured(network, images) if library == "CUDA graph" else lambda: network(images)
    timed(call, name, f"network alone, {batch} x {side} x {side}", library, precision)


@pytest.mark.skipif("PYFACE_SCRFD" not in os.environ, reason="PYFACE_SCRFD should name scrfd_2.5g_kps.onnx")
def test_network_of_a_peer(device, timed):
    """InsightFace's SCRFD-2.5g as onnxruntime runs it; its weights are for research and come with no package."""
    if device == "cuda":
        pytest.skip("timed on the CPU only")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the peer is not timed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(os.environ["PYFACE_SCRFD"], options)
    images = {session.get_inputs()[0].name: torch.zeros(1, 3, 640, 640).numpy()}
    assert len(session.run(None, images)) == 9  # scores, boxes and landmarks of three levels
    timed(lambda: session.run(None, images), "scrfd_2.5g", "network alone, 1 x 640 x 640", "onnxruntime")


def captured(network: SingleShot, images: Tensor):
    """The network as one CUDA graph, checked."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        maps = network(images)
    graph.replay()
    assert_same_maps(maps, network(images), "fp32")
    return graph.replay


@pytest.mark.parametrize("name", [*LITE, *PAPER])
@pytest.mark.parametrize("precision", ["fp32", "half"])
@pytest.mark.parametrize("batch", [1, 8, case(32, slow=True)])
@torch.inference_mode()
def test_post_processing(name, batch, precision, device, timed, monkeypatch):
    if name in PAPER and (batch > 1 or precision != "fp32") and device == "cpu":
        pytest.skip("the lite networks have maps of the same sizes")
    precision = precision_of(precision, device)
    model, side = network_of(name, device, precision), 192 if name in PAPER else 640
    maps = repeated(model(picture(1, side, model)), batch)
    best = model.candidates(maps, score_threshold=0.0, max_candidates=CANDIDATES + 1).scores[0]
    images, threshold = picture(batch, side, model), best[-1].item()
    monkeypatch.setattr(model, "forward", lambda images: maps)
    found = model.find(images, score_threshold=threshold)
    assert (found.count == found.count[0]).all()
    assert 0 < found.count[0] < 2 * CANDIDATES  # a few scores are equal
    with monkeypatch.context() as patch:
        for op in ("decode_anchors", "decode_densebox", "nms_padded"):
            patch.setattr(ops, op, getattr(reference, op))
        if batch == 1:
            assert torch.equal(model.find(images, score_threshold=threshold).index, found.index)
    task = f"post-processing alone, {batch} x {side} x {side}"
    timed(lambda: model.find(images, score_threshold=threshold), name, task, precision=precision)


def repeated(maps: object, batch: int) -> object:
    """The maps of one image as those of a batch."""
    if isinstance(maps, Tensor):
        return maps.expand(batch, -1, -1, -1).contiguous()
    if maps is None:
        return None
    parts = [repeated(part, batch) for part in maps]
    return type(maps)(*parts) if hasattr(maps, "_fields") else parts


ENDS = [
    *(
        case("mtcnn", batch, "fp32", of, slow=batch == 32)
        for batch in (1, 8, 32)
        for of in ("pyface", "facenet-pytorch")
    ),
    *(
        case(name, batch, precision, of, slow=precision != "fp32" or batch > (8 if name == "s3fd_lite" else 1))
        for name in LITE
        for batch in (1, 8, 32)
        for precision in ("fp32", "half")
        for of in ("pyface", "pyface, CUDA graph")
    ),
    *(case(name, 1, "fp32", "pyface", slow=True) for name in PAPER),
]


@pytest.mark.parametrize(("name", "batch", "precision", "library"), ENDS)
def test_end_to_end(name, batch, precision, library, device, jpeg, decode, facenet, timed):
    if library == "pyface, CUDA graph" and device == "cpu":
        pytest.skip("CUDA graphs need a GPU")
    precision, files = precision_of(precision, device), [jpeg] * batch
    task = f"end to end, {batch} x 512 x 512"
    if library == "facenet-pytorch":
        other = facenet()
        best = detector_of(name, device, precision, batch_size=batch)(jpeg).boxes[0]
        boxes = torch.as_tensor(other.detect(decode(jpeg))[0][0].astype("float32"))
        assert (boxes - best).abs().max() < 0.15 * (best[2] - best[0])
        timed(lambda: other.detect([decode(file) for file in files]), name, task, library)
        return
    graph = {"cuda_graph": True} if library == "pyface, CUDA graph" else {}
    detector = detector_of(name, device, precision, batch_size=batch, **graph)
    if name == "mtcnn":
        assert all(len(faces) == 1 for faces in detector(files))
    else:
        plain = detector_of(name, device, precision, batch_size=batch)  # a graph does not call hooks
        detector.score_threshold = stand_in_threshold(plain, [jpeg])
        alone = detector(jpeg).boxes[:1]
        for faces in detector(files):
            torch.testing.assert_close(faces.boxes[:1], alone, rtol=0.02, atol=0.5)
    timed(lambda: detector(files), name, task, library, precision)
