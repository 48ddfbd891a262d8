"""Resampling: letterbox and crop_resize turn uint8 images into normalised float planes in one pass.

Pixel k of an image covers [k, k + 1), so the box (0, 0, width, height) is the whole image. ``"bilinear"`` weights the
two nearest pixels of each axis whatever the scale. ``"area"`` averages over the output pixel's footprint, which is
better for downscaling, and equals bilinear for upscaling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyface.ops.extension import (
    FLOATS,
    INTEGERS,
    check_choice,
    check_dtype,
    check_one_device,
    check_shape,
    check_tensors,
    contiguous_as,
    launch,
    register,
    shape_of,
)

_INTERPOLATIONS = ("bilinear", "area")
_HUGE = 1e38
_MAX_SIDE = 2**24  # of images and outputs; far beyond memory, well within int32 arithmetic


def letterbox(
    images: Sequence[Tensor],
    size: tuple[int, int],
    *,
    scales: Sequence[float] | None = None,
    interpolation: str = "area",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Resizes images of any sizes into the top left corner of canvases of one size, as a normalised batch.

    An image keeps its aspect ratio: both axes are resized by one scale. The rest of its canvas is 0 in the result, the
    mean colour. To convert a box from the canvas to the image, divide it by the scale.

    Args:
        images: B images, uint8 [height, width, 3], on one device.
        size: (H, W) of the canvas, in pixels.
        scales: Canvas pixels per image pixel, one number > 0 per image, at which the image fits into the canvas; None:
            the largest that fits, ``min(H / height, W / width)``.
        interpolation: "area" or "bilinear".
        mean, std: Per channel, in pixel values from 0 to 255; the result is (pixel - mean) / std.

    Returns:
        batch, float32 [B, 3, H, W], on the images' device.
        scales, float64 [B], on the CPU.

    Raises:
        TypeError: An image is not a tensor, or not uint8.
        ValueError: There are no images, a shape is wrong, an image is empty, the size is below 1, a scale does not fit,
            a std is 0, or the interpolation is unknown.

    Example:
        >>> import torch, pyface
        >>> batch, scales = pyface.ops.letterbox([torch.zeros(100, 50, 3, dtype=torch.uint8)], (64, 64))
        >>> batch.shape, scales
        (torch.Size([1, 3, 64, 64]), tensor([0.6400], dtype=torch.float64))
    """
    images = _as_list("letterbox", images)
    if not images:
        raise ValueError("letterbox: images must be a list of one or more, got an empty list.")
    height, width = _pair("letterbox", size)
    if scales is None:
        shapes = [image.shape if image.ndim == 3 and image.numel() else (1, 1) for image in images]  # checked below
        scales = [min(height / shape[0], width / shape[1]) for shape in shapes]
    batch = torch.ops.pyface.letterbox.default(
        images, list(scales), height, width, interpolation, list(mean), list(std)
    )
    return batch, torch.tensor(scales, dtype=torch.float64)


def crop_resize(
    images: Sequence[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    size: tuple[int, int],
    *,
    interpolation: str = "bilinear",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Crops boxes from images and resizes them to one size, as a normalised batch.

    Samples are taken inside the box only (MTCNN's crops, docs/detectors.md 3.4), as if the crop were cut out first and
    then resized. Where a box reaches beyond its image, pixels are 0 before normalisation.

    Args:
        images: Images, uint8 [height, width, 3], on one device.
        boxes: [N, 4], any float dtype, (x1, y1, x2, y2) in continuous pixels.
        image_index: Integer [N], the image of each box.
        size: (H, W) of the crops, in pixels.
        interpolation: "bilinear" or "area".
        mean, std: Per channel, in pixel values from 0 to 255; the result is (pixel - mean) / std.

    Returns:
        float32 [N, 3, H, W].

    Raises:
        TypeError: An argument is not a tensor, an image is not uint8, or boxes are not of a float dtype.
        ValueError: Shapes or devices do not match, the size is below 1, a std is 0, or the interpolation is unknown. On
            the CPU also if an image_index is out of range or a box is not finite. On CUDA, where checking would need a
            synchronisation, these give crops with all pixels 0 before normalisation.

    Example:
        >>> import torch, pyface
        >>> image = torch.full((4, 4, 3), 100, dtype=torch.uint8)
        >>> crops = pyface.ops.crop_resize([image], torch.tensor([[0.0, 0, 8, 4]]), torch.tensor([0]), (1, 2))
        >>> crops[0, 0]
        tensor([[100.,   0.]])
    """
    images = _as_list("crop_resize", images)
    check_tensors("crop_resize", ("boxes", "image_index"), (boxes, image_index))
    size = _pair("crop_resize", size)
    return torch.ops.pyface.crop_resize.default(
        images, boxes.detach(), image_index, *size, interpolation, list(mean), list(std)
    )


# --- implementations -------------------------------------------------------------------------------------------------


def _as_list(op: str, images: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(images, Tensor) and images.ndim == 3:
        raise ValueError(f"{op}: images must be a list of tensors, got one tensor {shape_of(images)}; pass [image].")
    images = list(images)
    if images:
        check_tensors(op, [f"images[{i}]" for i in range(len(images))], images)
    return images


def _pair(op: str, size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"{op}: size must be (height, width), got {size!r}.")
    return size[0], size[1]


def _check(
    op: str, images: list[Tensor], height: int, width: int, interpolation: str, mean: list[float], std: list[float]
) -> None:
    for i, image in enumerate(images):
        check_dtype(op, f"images[{i}]", image, (torch.uint8,))
        check_shape(op, f"images[{i}]", image, image.ndim == 3 and image.shape[2] == 3, "[height, width, 3]")
        if not (1 <= image.shape[0] < _MAX_SIDE and 1 <= image.shape[1] < _MAX_SIDE):
            raise ValueError(f"{op}: images[{i}] must have pixels, got the shape {shape_of(image)}.")
    if not (1 <= height < _MAX_SIDE and 1 <= width < _MAX_SIDE):
        raise ValueError(f"{op}: size must be 1 x 1 pixels or more, got {height} x {width}.")
    check_choice(op, "interpolation", interpolation, _INTERPOLATIONS)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"{op}: mean and std must have 3 numbers each, got {len(mean)} and {len(std)}.")
    # In the range of float32, as the kernels take them.
    if not all(abs(value) < _HUGE for value in mean) or not all(1 / _HUGE < abs(value) < _HUGE for value in std):
        raise ValueError(f"{op}: mean must be finite and std finite and not 0, got mean={mean} and std={std}.")


def _check_crops(
    images: list[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    height: int,
    width: int,
    interpolation: str,
    mean: list[float],
    std: list[float],
) -> None:
    op = "crop_resize"
    check_one_device(op, boxes, image_index, *images)
    _check(op, images, height, width, interpolation, mean, std)
    check_dtype(op, "boxes", boxes, FLOATS)
    check_shape(op, "boxes", boxes, boxes.ndim == 2 and boxes.shape[1] == 4, "[N, 4]")
    check_dtype(op, "image_index", image_index, INTEGERS)
    fits = image_index.shape == boxes.shape[:1]
    check_shape(op, "image_index", image_index, fits, f"[N] = {list(boxes.shape[:1])} as in boxes")


def _check_letterbox(
    images: list[Tensor],
    scales: list[float],
    height: int,
    width: int,
    interpolation: str,
    mean: list[float],
    std: list[float],
) -> None:
    check_one_device("letterbox", *images)
    _check("letterbox", images, height, width, interpolation, mean, std)
    if len(scales) != len(images):
        raise ValueError(f"letterbox: scales must be one number per image, got {len(scales)} for {len(images)}.")
    for i, (image, scale) in enumerate(zip(images, scales, strict=True)):
        # Half a pixel more is rounded away; a side below half a pixel becomes one pixel.
        fits = scale > 0 and image.shape[0] * scale < height + 0.5 and image.shape[1] * scale < width + 0.5
        if not fits:
            raise ValueError(
                f"letterbox: scales[{i}] must be > 0 and let images[{i}] {shape_of(image)} fit into {height} x {width} "
                f"pixels, got {scale}."
            )


def _letterbox(
    images: list[Tensor],
    scales: list[float],
    height: int,
    width: int,
    interpolation: str,
    mean: list[float],
    std: list[float],
) -> Tensor:
    _check_letterbox(images, scales, height, width, interpolation, mean, std)
    images = [image.contiguous() for image in images]
    out = torch.empty((len(images), 3, height, width), dtype=torch.float32, device=images[0].device)
    mode, scale = _INTERPOLATIONS.index(interpolation), [1 / value for value in std]
    launch("letterbox", out.device, images, scales, len(images), height, width, mode, (mean, scale), out)
    return out


def _crop_resize(
    images: list[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    height: int,
    width: int,
    interpolation: str,
    mean: list[float],
    std: list[float],
) -> Tensor:
    _check_crops(images, boxes, image_index, height, width, interpolation, mean, std)
    if boxes.device.type == "cpu" and len(boxes):
        _check_crop_values(boxes, image_index, len(images))
    images = [image.contiguous() for image in images]
    boxes, image_index = contiguous_as(boxes, torch.float32), contiguous_as(image_index, torch.int64)
    out = torch.empty((len(boxes), 3, height, width), dtype=torch.float32, device=boxes.device)
    mode, scale = _INTERPOLATIONS.index(interpolation), [1 / value for value in std]
    launch(
        "crop_resize",
        out.device,
        images,
        len(images),
        boxes,
        image_index,
        len(boxes),
        height,
        width,
        mode,
        (mean, scale),
        out,
    )
    return out


def _check_crop_values(boxes: Tensor, image_index: Tensor, num_images: int) -> None:
    low, high = (int(value) for value in image_index.aminmax())
    if low < 0 or high >= num_images:
        raise ValueError(
            f"crop_resize: image_index must be in [0, {num_images}), the number of images, "
            f"got {low if low < 0 else high}."
        )
    if not boxes.isfinite().all():
        raise ValueError("crop_resize: boxes must be finite, got NaN or inf; drop such boxes first.")


def _fake_letterbox(
    images: list[Tensor],
    scales: list[float],
    height: int,
    width: int,
    interpolation: str,
    mean: list[float],
    std: list[float],
) -> Tensor:
    _check_letterbox(images, scales, height, width, interpolation, mean, std)
    return images[0].new_empty((len(images), 3, height, width), dtype=torch.float32)


def _fake_crop_resize(
    images: list[Tensor],
    boxes: Tensor,
    image_index: Tensor,
    height: int,
    width: int,
    interpolation: str,
    mean: list[float],
    std: list[float],
) -> Tensor:
    _check_crops(images, boxes, image_index, height, width, interpolation, mean, std)
    return boxes.new_empty((boxes.shape[0], 3, height, width), dtype=torch.float32)


register(
    "letterbox(Tensor[] images, float[] scales, SymInt height, SymInt width, str interpolation, float[] mean, "
    "float[] std) -> Tensor",
    _letterbox,
    _fake_letterbox,
)
register(
    "crop_resize(Tensor[] images, Tensor boxes, Tensor image_index, SymInt height, SymInt width, str interpolation, "
    "float[] mean, float[] std) -> Tensor",
    _crop_resize,
    _fake_crop_resize,
)
