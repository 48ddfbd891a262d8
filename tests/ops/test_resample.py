"""letterbox and crop_resize: kernels against the reference, OpenCV and hand-made cases; hostile input."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyface import ops
from pyface.ops import reference

MODES = ["bilinear", "area"]


def pictures(*sizes: tuple[int, int], device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).to(device)
        for height, width in sizes
    ]


def crops_of(images, n, device, seed=0):
    """Boxes inside, across and beyond the borders, larger and smaller than the crops."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, generator=generator) * 160 - 30
    half = torch.exp(torch.rand(n, 2, generator=generator) * 6 - 1)
    boxes = torch.cat([centre - half, centre + half], 1)
    boxes[::3] = boxes[::3].round()
    return boxes.to(device), torch.randint(0, len(images), (n,), generator=generator).to(device)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (7, 64), (64, 48), (300, 200)])
def test_letterbox_equals_reference(size, mode, device):
    images = pictures((100, 70), (33, 200), (1, 1), (480, 640), device=device)
    arguments = {"interpolation": mode, "mean": (104.0, 117.0, 123.0), "std": (2.0, 57.4, -3.0)}
    batch, scales = ops.letterbox(images, size, **arguments)
    expected, expected_scales = reference.letterbox(images, size, **arguments)
    torch.testing.assert_close(batch, expected, rtol=0, atol=2e-4)
    assert torch.equal(scales, expected_scales)


def test_letterbox_places_the_image_top_left_and_pads_with_zero(device):
    image = torch.full((10, 20, 3), 50, dtype=torch.uint8, device=device)
    batch, scales = ops.letterbox([image], (16, 16), mean=(10, 20, 30), std=(2, 2, 2))
    assert scales.tolist() == [0.8]
    assert torch.equal(batch[0, :, :8].flatten(1).cpu(), torch.tensor([[20.0], [15], [10]]).expand(3, 8 * 16))
    assert (batch[0, :, 8:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_letterbox_with_given_scales_equals_reference(mode, device):
    images = pictures((30, 40), (64, 64), (9, 120), device=device)
    arguments = {"scales": [1.0, 0.5, 0.53], "interpolation": mode, "mean": (104.0, 117.0, 123.0)}
    batch, scales = ops.letterbox(images, (64, 64), **arguments)
    torch.testing.assert_close(batch, reference.letterbox(images, (64, 64), **arguments)[0], rtol=0, atol=2e-4)
    assert scales.tolist() == [1.0, 0.5, 0.53]
    same = (batch[0, :, :30, :40] + torch.tensor([104.0, 117, 123], device=device)[:, None, None]).round()
    assert torch.equal(same.permute(1, 2, 0).to(torch.uint8), images[0])


def test_letterbox_of_more_images_than_fit_one_launch(device):
    images = pictures(*[(5 + i % 7, 9 - i % 5) for i in range(150)], device=device)
    batch, _ = ops.letterbox(images, (8, 8))
    torch.testing.assert_close(batch, reference.letterbox(images, (8, 8))[0], rtol=0, atol=2e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (24, 24), (48, 48), (9, 50)])
def test_crop_resize_equals_reference(size, mode, device):
    images = pictures((100, 70), (33, 200), (1, 1), device=device)
    boxes, index = crops_of(images, 120, device)
    arguments = {"interpolation": mode, "mean": (127.5,) * 3, "std": (128.0,) * 3}
    crops = ops.crop_resize(images, boxes, index, size, **arguments)
    torch.testing.assert_close(crops, reference.crop_resize(images, boxes, index, size, **arguments), rtol=0, atol=3e-6)


def test_crop_resize_with_many_images(device):
    images = pictures(*[(5 + i % 7, 9 - i % 5) for i in range(150)], device=device)
    boxes, index = crops_of(images, 300, device)
    crops = ops.crop_resize(images, boxes, index, (6, 6))
    torch.testing.assert_close(crops, reference.crop_resize(images, boxes, index, (6, 6)), rtol=0, atol=2e-4)


def test_pixels_that_32_bits_cannot_count(device, sparse):
    side = 27_000
    image = sparse(3 * side * side, device).view(side, side, 3)
    corner = pictures((10, 10), device=device)[0]
    image[-10:, -10:] = corner
    box, index = torch.tensor([[0.0, 0, 10, 10]], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    found = ops.crop_resize([image], box + (side - 10), index, (5, 5))
    assert torch.equal(found, ops.crop_resize([corner], box, index, (5, 5)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-400, 400, width=32), min_size=4, max_size=4),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(MODES),
)
def test_crop_resize_equals_reference_on_any_box(box, size, sides, mode):
    images, boxes, index = pictures(sides), torch.tensor([box]), torch.tensor([0])
    crops = ops.crop_resize(images, boxes, index, size, interpolation=mode)
    expected = reference.crop_resize(images, boxes, index, size, interpolation=mode)
    torch.testing.assert_close(crops, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("mode", "flag"), [("bilinear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA)])
def test_whole_images_agree_with_opencv(mode, flag, device):
    # OpenCV rounds to whole grey levels, and its 8-bit bilinear has 11-bit weights.
    (image,) = pictures((120, 90), device=device)
    box, index = torch.tensor([[0.0, 0, 90, 120]], device=device), torch.tensor([0], device=device)
    for height, width in [(60, 45), (50, 37), (24, 24)]:
        crop = ops.crop_resize([image], box, index, (height, width), interpolation=mode)[0].cpu()
        expected = cv2.resize(image.cpu().numpy(), (width, height), interpolation=flag)
        np.testing.assert_allclose(crop.permute(1, 2, 0).numpy(), expected, atol=1.0)


def test_a_crop_equals_cutting_out_then_resizing(device):
    # Pixels beside the box must not leak in, and outside of the image there are zeros.
    (image,) = pictures((40, 40), device=device)
    boxes = torch.tensor([[10.0, 5, 22, 17], [-6, -4, 8, 10], [35, 30, 49, 44]], device=device)
    padded = torch.zeros(80, 80, 3, dtype=torch.uint8, device=device)
    padded[20:60, 20:60] = image
    for mode in MODES:
        crops = ops.crop_resize(
            [image], boxes, torch.zeros(3, dtype=torch.int64, device=device), (24, 24), interpolation=mode
        )
        for crop, (x1, y1, x2, y2) in zip(crops, (boxes.int() + 20).tolist(), strict=True):
            cut = padded[y1:y2, x1:x2].contiguous()
            whole = torch.tensor([[0.0, 0, x2 - x1, y2 - y1]], device=device)
            expected = ops.crop_resize([cut], whole, torch.tensor([0], device=device), (24, 24), interpolation=mode)[0]
            torch.testing.assert_close(crop, expected, rtol=0, atol=1e-4)


def test_degenerate_and_enormous_boxes(device):
    images = pictures((20, 30), device=device)
    boxes = torch.tensor(
        [
            [5, 5, 5, 5],
            [9, 9, 3, 3],
            [-1e30, -1e30, 1e30, 1e30],
            [1e9, 1e9, 2e9, 2e9],
            [-3e38, 0, 3e38, 5],
            [2, 2, 2.5, 2.5],
            [1.2515788, 0, 2.7357320e16, 10],
        ],
        device=device,
    )
    index = torch.zeros(len(boxes), dtype=torch.int64, device=device)
    for mode in MODES:
        crops = ops.crop_resize(images, boxes, index, (24, 24), interpolation=mode)
        assert crops.isfinite().all()
        torch.testing.assert_close(crops, reference.crop_resize(images, boxes, index, (24, 24), interpolation=mode))


def test_non_contiguous_images(device):
    (wide,) = pictures((60, 80), device=device)
    view = wide[::2, ::2].flip(1)
    for image in (view, wide.permute(1, 0, 2)):
        batch, _ = ops.letterbox([image], (32, 32))
        assert torch.equal(batch, ops.letterbox([image.contiguous()], (32, 32))[0])


@pytest.mark.cuda
def test_bad_indices_and_boxes_give_black_crops_on_cuda(cuda):
    images = pictures((20, 30), device=cuda)
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [0, math.nan, 9, 9]], device=cuda)
    crops = ops.crop_resize(images, boxes, torch.tensor([1, -1, 0], device=cuda), (4, 4), mean=(1, 1, 1))
    assert (crops == -1).all()


IMAGE, BOX, INDEX = torch.zeros(8, 8, 3, dtype=torch.uint8), torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.letterbox([], (8, 8)), ValueError, "images must be a list of one or more"),
        (
            lambda: ops.letterbox(IMAGE, (8, 8)),
            ValueError,
            r"images must be a list of tensors, got one tensor \[8, 8, 3\]",
        ),
        (lambda: ops.letterbox([IMAGE.numpy()], (8, 8)), TypeError, r"images\[0\] must be a torch.Tensor, got ndarray"),
        (lambda: ops.letterbox([IMAGE.float()], (8, 8)), TypeError, "images.0. must be one of uint8"),
        (lambda: ops.letterbox([IMAGE[..., :1]], (8, 8)), ValueError, r"\[height, width, 3\], got \[8, 8, 1\]"),
        (lambda: ops.letterbox([IMAGE[:0]], (8, 8)), ValueError, "must have pixels"),
        (lambda: ops.letterbox([IMAGE], (0, 8)), ValueError, "1 x 1 pixels or more, got 0 x 8"),
        (lambda: ops.letterbox([IMAGE], 8), ValueError, r"size must be \(height, width\)"),
        (lambda: ops.letterbox([IMAGE], (8, 8), scales=[1.2]), ValueError, r"scales\[0\] must be > 0 and let images"),
        (lambda: ops.letterbox([IMAGE], (8, 8), scales=[1, 1]), ValueError, "one number per image, got 2 for 1"),
        (lambda: ops.letterbox([IMAGE], (8, 8), interpolation="cubic"), ValueError, "interpolation must be one of"),
        (lambda: ops.letterbox([IMAGE], (8, 8), std=(1, 0, 1)), ValueError, "std finite and not 0"),
        (lambda: ops.letterbox([IMAGE], (8, 8), mean=(1, 2)), ValueError, "3 numbers each"),
        (
            lambda: ops.crop_resize([IMAGE], BOX, INDEX + 1, (8, 8)),
            ValueError,
            r"image_index must be in \[0, 1\).*got 1",
        ),
        (lambda: ops.crop_resize([IMAGE], BOX, INDEX - 1, (8, 8)), ValueError, "got -1"),
        (lambda: ops.crop_resize([], BOX, INDEX, (8, 8)), ValueError, r"image_index must be in \[0, 0\)"),
        (lambda: ops.crop_resize([IMAGE], BOX * math.nan, INDEX, (8, 8)), ValueError, "boxes must be finite"),
        (lambda: ops.crop_resize([IMAGE], BOX[0], INDEX, (8, 8)), ValueError, r"\[N, 4\], got \[4\]"),
        (lambda: ops.crop_resize([IMAGE], BOX, INDEX.float(), (8, 8)), TypeError, "image_index must be one of int64"),
    ],
)
def test_error_messages(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_neither_boxes_nor_images():
    assert ops.crop_resize([], torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (8, 8)).shape == (0, 3, 8, 8)


def test_opcheck(device):
    images = pictures((9, 7), (5, 12), device=device)
    boxes, index = crops_of(images, 4, device)
    normalisation = ("area", [1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    torch.library.opcheck(torch.ops.pyface.letterbox.default, (images, [0.2] * len(images), 8, 6, *normalisation))
    torch.library.opcheck(torch.ops.pyface.crop_resize.default, (images, boxes, index, 8, 6, *normalisation))
