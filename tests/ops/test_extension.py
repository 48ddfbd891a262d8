"""The checks below the ops' own: csrc/bind.h checks every argument of a launcher."""

import math
import runpy
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pyface.ops import extension
from pyface.ops.extension import launch

CPU = torch.device("cpu")
NMS = {
    "boxes": torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]]),
    "scores": torch.tensor([0.9, 0.8, 0.7]),
    "classes": None,
    "counts": None,
    "batch": 1,
    "n": 3,
    "iou_threshold": 0.5,
    "score_threshold": -math.inf,
    "overlap": 0,
    "max_detections": 3,
    "keep": torch.empty(3, dtype=torch.int64),
    "keep_count": torch.empty(1, dtype=torch.int32),
}


def nms(**changes):
    launch("nms", CPU, *(NMS | changes).values())


def test_a_launch_writes_into_the_tensors():
    nms()
    assert NMS["keep"].tolist() == [0, 2, -1]
    assert NMS["keep_count"].item() == 2
    nms(classes=torch.tensor([0, 1, 1]))
    assert NMS["keep"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"scores": torch.ones(2)}, ValueError, r"nms: scores must have 3 elements \[batch, n\], got 2\."),
        ({"boxes": torch.ones(3, 3)}, ValueError, r"nms: boxes must have 12 elements \[batch, n, 4\], got 9\."),
        ({"boxes": NMS["scores"], "scores": NMS["boxes"]}, ValueError, "nms: boxes must have 12 elements"),
        ({"n": 4}, ValueError, "nms: boxes must have 16 elements"),
        ({"keep": torch.empty(2, dtype=torch.int64)}, ValueError, "nms: keep must have 3 elements"),
        ({"keep": torch.empty(3, dtype=torch.int32)}, TypeError, "keep must be torch.int64, got torch.int32"),
        ({"scores": NMS["scores"].double()}, TypeError, "nms: scores must be torch.float32, got torch.float64"),
        ({"scores": None}, TypeError, "nms: scores must be a torch.Tensor, got NoneType"),
        ({"scores": [0.9, 0.8, 0.7]}, TypeError, "nms: scores must be a torch.Tensor, got list"),
        (
            {"counts": torch.ones(2, dtype=torch.int32)},
            ValueError,
            r"nms: counts must have 1 elements \[batch\], got 2",
        ),
        ({"n": 3.0}, TypeError, "nms: n must be an int of 64 bits, got 3.0"),
        ({"n": 2**63}, TypeError, "nms: n must be an int of 64 bits, got 9223372036854775808"),
        ({"iou_threshold": "half"}, TypeError, "nms: iou_threshold must be a number, got str"),
        ({"more": 1}, TypeError, "nms takes 13 arguments, got 14"),
    ],
)
def test_arguments_are_checked_before_the_launch(changes, error, words):
    with pytest.raises(error, match=words) as raised:
        nms(**changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("current", "switches"), [(0, ["cuda:1"]), (1, [])])
def test_a_launch_on_another_gpu_switches_to_it_with_torch(current, switches, monkeypatch):
    """CUDA's own switch back would set up a context on a GPU that has none."""
    launched, switched = [], []
    kernels = SimpleNamespace(nms=lambda *arguments: launched.append(arguments[-2:]) or 0)
    monkeypatch.setattr(extension, "_C", SimpleNamespace(has_cuda=True, cuda=kernels))
    monkeypatch.setattr("torch.cuda.current_device", lambda: current)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr("torch.cuda.device", lambda device: switched.append(str(device)) or nullcontext())
    launch("nms", torch.device("cuda:1"))
    assert launched == [(1, 7)]
    assert switched == switches


def grid_maps(height, width):
    return torch.zeros(1, 1, height, width), torch.zeros(1, 4, height, width)


def candidates(most=5):
    return (
        torch.empty(1, most, 4),
        torch.empty(1, most),
        None,
        torch.empty(1, most, dtype=torch.int64),
        torch.empty(1, dtype=torch.int32),
    )


def decode_densebox(maps, dtype=torch.float32, grid=(6, 7, 4, 12.5), decoding=(0.0, 0.0, 0.0, None, 5), found=None):
    launch("decode_densebox", CPU, *maps, dtype, 1, grid, 0.5, decoding, candidates() if found is None else found)


def test_structs_and_maps_are_checked_too():
    decode_densebox(grid_maps(6, 7))
    scores, offsets = grid_maps(6, 7)
    wrong = [
        (
            lambda: decode_densebox(grid_maps(7, 6)),
            ValueError,
            r"scores must have the shape \[batch, 1, height, width\]",
        ),
        (lambda: decode_densebox((offsets, scores)), ValueError, "scores must have the shape"),
        (lambda: decode_densebox((scores, offsets.half())), TypeError, "offsets must be torch.float32 as dtype says"),
        (
            lambda: decode_densebox((scores, offsets), torch.float64),
            TypeError,
            "scores must be torch.float64 as dtype says",
        ),
        (lambda: decode_densebox((scores[0], offsets)), ValueError, "scores must have 4 dimensions, got 3"),
        (
            lambda: decode_densebox((scores, offsets), grid=(6, 7, 4)),
            ValueError,
            r"grid must have 4 fields \(height, width, stride, unit\), got 3",
        ),
        (
            lambda: decode_densebox((scores, offsets), grid=(6, 7, 2**31, 12.5)),
            ValueError,
            "grid.stride must fit into 32 bits, got 2147483648",
        ),
        (lambda: decode_densebox((scores, offsets), grid=4), TypeError, "grid must be a tuple or list, got int"),
        (
            lambda: decode_densebox((scores, offsets), found=candidates(4)),
            ValueError,
            r"out.boxes must have 20 elements \[batch, max_candidates, 4\], got 16",
        ),
        (
            lambda: decode_densebox((scores, offsets), decoding=(0.0, 0.0, 0.0, torch.ones(2, 2), 5)),
            ValueError,
            "decoding.sizes must have 2 elements",
        ),
    ]
    for function, error, words in wrong:
        with pytest.raises(error, match=words) as raised:
            function()
        assert str(raised.value).startswith("decode_densebox: ")


def test_the_stub_is_up_to_date():
    """`python scripts/make_stub.py` writes it."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "make_stub.py"))
    assert script["STUB"].read_text(encoding="utf-8") == script["make_stub"]()


def test_every_launcher_has_a_signature():
    functions = {name: vars(extension._C.cpu)[name] for name in dir(extension._C.cpu) if name[0] != "_"}
    assert len(functions) >= 17
    for name, function in functions.items():
        assert f"{name}(" in function.__doc__.splitlines()[-1]
