"""Arguments of the ops over dtypes, strides, sizes and hostile numbers: the reference's result, or an error.

What an op refuses need not be refused by the reference, which checks nothing.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyface import ops
from pyface.ops import reference
from tests.fuzz.faults import Fault, expect
from tests.fuzz.mutate import pick

NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 7.25, 100.0, 1e-30, 1e-42, 1e18, 1e30, 3e38, math.inf, -math.inf, math.nan]
OPTIONS = [0, 1, -1, 0.3, 0.5, 1.5, 2, 7, 1e-40, 1e30, math.inf, -math.inf, math.nan, 2**31, 2**63, None, "x", True]
DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]
SIZES = [0, 1, 2, 3, 4, 7, 16, 17, 33, 64, 65, 130]


def run(rng: np.random.Generator) -> str:
    """Calls one op; returns "read" if the result is the reference's, "refused" if it raises."""
    name = pick(rng, list(MAKERS))
    arguments, options = MAKERS[name](rng)
    if rng.random() < 0.6:
        arguments = [_map_tensors(lambda tensor: _strided(rng, tensor), argument) for argument in arguments]
    if rng.random() < 0.4:
        arguments, options = _spoiled(rng, arguments, options)
    try:
        got = getattr(ops, name)(*arguments, **options)
    except (TypeError, ValueError) as error:
        expect(len(str(error)) < 2000, f"{name}: an error of {len(str(error))} characters")
        return "refused"
    except RuntimeError as error:  # torch's dispatcher refuses types that the op's schema does not have
        if "but it is actually of type" in str(error) or "Expected a value of type" in str(error):
            return "refused"
        raise
    read = {key: _map_tensors(_as_read, option) for key, option in options.items()}
    expected = getattr(reference, name)(*[_map_tensors(_as_read, argument) for argument in arguments], **read)
    _compare(name, got, expected)
    return "read"


def _map_tensors(function: Callable[[Tensor], Any], argument: Any) -> Any:
    """Applies a function to an argument's tensors, which may be in lists and in named tuples."""
    if isinstance(argument, Tensor):
        return function(argument)
    if isinstance(argument, list):
        return [_map_tensors(function, part) for part in argument]
    if isinstance(argument, tuple) and hasattr(argument, "_fields"):
        return type(argument)(*(_map_tensors(function, part) for part in argument))
    return argument


def _as_read(tensor: Tensor) -> Tensor:
    """What the kernels read: float32 in place of other floating-point dtypes."""
    return tensor.to(torch.float32).contiguous() if tensor.is_floating_point() else tensor


def _compare(name: str, got: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        expect(len(got) == len(expected), f"{name}: {len(got)} results")
        for k, (one, other) in enumerate(zip(got, expected, strict=True)):
            _compare(f"{name}[{k}]", one, other)
        return
    expect(got.shape == expected.shape, f"{name}: {list(got.shape)} for {list(expected.shape)}")
    tolerance = {"atol": 2e-3, "rtol": 1e-5} if name.startswith(("letterbox", "crop")) else {"atol": 1e-6, "rtol": 1e-5}
    try:
        torch.testing.assert_close(got.float(), expected.float(), equal_nan=True, **tolerance)
    except AssertionError as error:
        raise Fault(f"{name}: {error}") from None


def _numbers(rng: np.random.Generator, *shape: int) -> Tensor:
    """Small numbers with many ties, and in some calls hostile ones among them."""
    values = rng.integers(-3, 12, shape).astype(np.float32) / pick(rng, [1, 1, 4])
    if rng.random() < 0.5:
        hostile = rng.random(shape) < 0.15
        values[hostile] = rng.choice(NUMBERS, shape)[hostile]
    return torch.from_numpy(values)


def _boxes(rng: np.random.Generator, *shape: int) -> Tensor:
    boxes = _numbers(rng, *shape, 4)
    if rng.random() < 0.8:
        boxes[..., 2:] += boxes[..., :2]
    return boxes


def _strided(rng: np.random.Generator, value: Tensor) -> Tensor:
    """The same values with other strides or another floating-point dtype."""
    if value.is_floating_point() and rng.random() < 0.3:
        value = value.to(pick(rng, [torch.float16, torch.bfloat16, torch.float64]))
    match rng.integers(4):
        case 0 if value.dim():
            return torch.stack([value, value], -1)[..., 0]
        case 1 if value.dim() > 1:
            return value.transpose(0, 1).contiguous().transpose(0, 1)
        case 2 if value.dim():
            return torch.cat([value[:1], value])[1:]  # its memory begins later
        case _:
            return value


def _spoiled(
    rng: np.random.Generator, arguments: list[Any], options: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """One argument of another dtype, shape or value."""
    arguments, options = list(arguments), dict(options)
    if options and rng.random() < 0.5:
        options[pick(rng, list(options))] = pick(rng, OPTIONS)
        return arguments, options
    k = int(rng.integers(len(arguments)))
    value = arguments[k]
    if not isinstance(value, Tensor):
        arguments[k] = pick(rng, [*OPTIONS, [], [value]])
        return arguments, options
    match rng.integers(5):
        case 0:
            arguments[k] = value.to(pick(rng, DTYPES))
        case 1:
            arguments[k] = value[:-1] if value.dim() else value[None]
        case 2:
            arguments[k] = value[None]
        case 3:
            arguments[k] = value.flatten()
        case _:
            arguments[k] = pick(rng, [value.to_sparse() if value.dim() else value, None, value.tolist()])
    return arguments, options


def _fraction(rng: np.random.Generator) -> float:
    return pick(rng, [0.0, 0.1, 0.3, 1 / 3, 0.5, 0.7, 1.0])


def _scored(rng: np.random.Generator) -> list[Any]:
    n = pick(rng, SIZES)
    return [_boxes(rng, n), _numbers(rng, n)]


def _overlap(rng: np.random.Generator) -> dict[str, Any]:
    return {"iou_threshold": _fraction(rng), "overlap": pick(rng, ["union", "min"])}


def _nms_padded(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    batch, n = int(rng.integers(4)), pick(rng, SIZES)
    counts = pick(rng, [None, torch.from_numpy(rng.integers(0, n + 1, batch))])
    options = _overlap(rng) | {
        "max_detections": pick(rng, [0, 1, 5, 200]),
        "score_threshold": pick(rng, [None, 0.5, 0]),
    }
    return [_boxes(rng, batch, n), _numbers(rng, batch, n), counts], options


def _soft_nms(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    # Only "linear" with small integers is exact: lowered scores that nearly tie may change their order.
    return _scored(rng), _overlap(rng) | {"method": "linear", "score_threshold": 0.1}


def _assign(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    sizes = rng.choice([0, 1, 2, 7], int(rng.integers(4)))
    splits = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))
    positive = _fraction(rng) or 0.5
    compensate = pick(rng, [None, "mean", 1, 3])
    options = {
        "positive": positive,
        "negative": positive / 2,
        "force_best": bool(rng.integers(2)),
        "compensate": compensate,
    }
    return [_boxes(rng, pick(rng, SIZES)), _boxes(rng, int(splits[-1])), splits], options


def _losses(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    shape = int(rng.integers(4)), pick(rng, SIZES)
    index = torch.from_numpy(rng.choice([-2, -1, -1, -1, 0, 7], shape).astype(np.int32))
    return [_numbers(rng, *shape), index], {"ratio": pick(rng, [0.0, 1.0, 3.0, 0.5]), "minimum": pick(rng, [0, 1, 16])}


def _balanced(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    arguments, options = _losses(rng)
    return arguments, options | {"hard_fraction": _fraction(rng), "seed": int(rng.integers(2**62))}


def _online(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    n = pick(rng, SIZES)
    return [_numbers(rng, n)], {
        "keep": _fraction(rng),
        "valid": pick(rng, [None, torch.from_numpy(rng.random(n) < 0.5)]),
    }


def _logits(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    channels = int(rng.integers(1, 4))
    return [_numbers(rng, int(rng.integers(3)), channels + 1, 3, pick(rng, [1, 5, 16]))], {"num_background": channels}


def _image(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, (*rng.integers(1, 40, 2), 3), np.uint8))


def _letterbox(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    images = [_image(rng) for _ in range(rng.integers(1, 4))]
    size = tuple(int(side) for side in rng.integers(1, 50, 2))
    return [images, size], {"interpolation": pick(rng, ["area", "bilinear"])}


def _crop_resize(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    images, n = [_image(rng) for _ in range(rng.integers(1, 4))], pick(rng, SIZES[:6])
    corner = rng.integers(-20, 40, (n, 2)) + rng.choice([0, 0.5])
    boxes = torch.from_numpy(np.concatenate([corner, corner + rng.integers(1, 60, (n, 2))], 1).astype(np.float32))
    index = torch.from_numpy(rng.integers(0, len(images), n))
    size = tuple(int(side) for side in rng.integers(1, 30, 2))
    return [images, boxes, index, size], {"interpolation": pick(rng, ["area", "bilinear"])}


def _batched(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    boxes, scores = _scored(rng)
    return [boxes, scores, torch.from_numpy(rng.integers(-1, 3, len(boxes)))], _overlap(rng)


def _maps(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    """Maps of one to three levels, of which all or none have landmarks."""
    batch, has_landmarks = int(rng.integers(3)), bool(rng.integers(2))
    maps, levels = [], []
    for _ in range(rng.integers(1, 4)):
        k, backgrounds, cells = int(rng.integers(1, 4)), int(rng.integers(4)), [int(n) for n in rng.integers(0, 7, 2)]
        channels = [
            (backgrounds + 1) * k,
            4 * k,
            10 * k if has_landmarks else 0,
            *(rng.integers(2, size=2) * [k, 4 * k]),
        ]
        maps.append(ops.LevelMaps(*[_numbers(rng, batch, int(n), *cells) if n else None for n in channels]))
        sides = rng.integers(1, 40, (k, 2))
        boxes = np.concatenate([-sides / 2, sides / 2], 1)
        limit = pick(rng, [None, 0, 1, 5])
        levels.append(ops.AnchorLevel(int(rng.integers(1, 33)), tuple(map(tuple, boxes.tolist())), backgrounds, limit))
    sizes = torch.from_numpy(rng.integers(0, 100, (batch, 2)).astype(np.float32))
    options = {
        "score_threshold": _fraction(rng),
        "max_candidates": pick(rng, [0, 1, 5, 200]),
        "gate_threshold": _fraction(rng),
        "sizes": pick(rng, [None, sizes]),
    }
    return [maps, levels], options


def _densebox_maps(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    batch, cells = int(rng.integers(3)), [int(n) for n in rng.integers(0, 9, 2)]
    options = {
        "score_threshold": _fraction(rng),
        "max_candidates": pick(rng, [0, 1, 5, 200]),
        "stride": int(rng.integers(1, 9)),
        "unit": pick(rng, [1.0, 12.5, 0.5]),
    }
    return [_numbers(rng, batch, 1, *cells), _numbers(rng, batch, 4, *cells)], options


def _densebox_faces(rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
    counts = rng.choice([0, 1, 2, 7], int(rng.integers(4)))
    splits = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    faces, points = int(splits[-1]), int(rng.integers(4))
    boxes = _boxes(rng, faces) * pick(rng, [1.0, 8.0])
    size = tuple(int(side) for side in rng.integers(0, 20, 2))
    options = {
        "stride": int(rng.integers(1, 9)),
        "face": pick(rng, [1.0, 20.0, 50.0]),
        "radius": pick(rng, [0.25, 0.5]),
        "gray": pick(rng, [0.0, 1.0, 2.0]),
        "ignore": pick(rng, [None, torch.from_numpy(rng.random(faces) < 0.3)]),
        "landmarks": pick(rng, [None, 8 * _numbers(rng, faces, points, 2)]),
    }
    return [boxes, splits, size], options


MAKERS: dict[str, Callable[[np.random.Generator], tuple[list[Any], dict[str, Any]]]] = {
    "nms": lambda rng: (_scored(rng), _overlap(rng)),
    "batched_nms": _batched,
    "nms_padded": _nms_padded,
    "soft_nms": _soft_nms,
    "box_voting": lambda rng: (_scored(rng), _overlap(rng) | {"drop_singletons": bool(rng.integers(2))}),
    "assign_anchors": _assign,
    "hard_negatives": _losses,
    "balanced_sample": _balanced,
    "online_hard": _online,
    "maxout_background": _logits,
    "face_probability": _logits,
    "letterbox": _letterbox,
    "crop_resize": _crop_resize,
    "decode_anchors": _maps,
    "decode_densebox": _densebox_maps,
    "densebox_targets": _densebox_faces,
}
