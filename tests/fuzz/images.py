"""Damaged image files of 45 kinds: `read_image` gives uint8 RGB of the size in the header, or an ImageError."""

import functools
import io

import cv2
import numpy as np
from PIL import Image

from pyface.io.headers import HeaderError, read_header
from pyface.io.images import ImageError, read_image
from tests.fuzz.faults import expect
from tests.fuzz.mutate import bytes_of, pick

MAX_PIXELS = 10**6


@functools.cache
def seeds() -> list[bytes]:
    """Whole files of 45 kinds, all small."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8)
    pixels = cv2.resize(pixels, (37, 23), interpolation=cv2.INTER_CUBIC)
    rgba = Image.fromarray(pixels, "RGBA")
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = [
        *((rgb, "JPEG", {}), (rgb, "JPEG", {"progressive": True}), (grey, "JPEG", {})),
        (rgb.convert("CMYK"), "JPEG", {}),
        *((rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"restart_marker_rows": 1}), (rgb, "JPEG", {"subsampling": 0})),
        *((rgb, "PNG", {}), (rgba, "PNG", {}), (grey, "PNG", {}), (rgb.convert("P"), "PNG", {})),
        (rgb, "PNG", {"exif": exif}),
        *((rgb.convert("1"), "PNG", {}), (grey.convert("LA"), "PNG", {})),
        *((rgb, "WEBP", {}), (rgba, "WEBP", {"lossless": True}), (rgba, "WEBP", {}), (rgb, "WEBP", {"exif": exif})),
        *((rgb.convert("P"), "GIF", {}), (rgb, "GIF", {"save_all": True, "append_images": [rgb.rotate(180)]})),
        *((rgb, "BMP", {}), (grey, "BMP", {}), (rgba, "BMP", {}), (rgb.convert("P"), "BMP", {})),
        (rgb.convert("1"), "BMP", {}),
        *((rgb, "TIFF", {}), (grey, "TIFF", {"compression": "tiff_lzw"}), (rgba, "TIFF", {"compression": "packbits"})),
        *((rgb, "TIFF", {"compression": "jpeg"}), (rgb.convert("CMYK"), "TIFF", {}), (rgb, "TIFF", {"exif": exif})),
        *((rgb, "TIFF", {"compression": "tiff_adobe_deflate"}), (grey.convert("LA"), "TIFF", {})),
        *((rgb, "AVIF", {"speed": 10}), (rgba, "AVIF", {"speed": 10})),
        *((rgb, "JPEG2000", {}), (rgb, "JPEG2000", {"no_jp2": True})),
        *((rgb, "PPM", {}), (grey, "PPM", {}), (rgb.convert("1"), "PPM", {})),
    ]  # fmt: skip
    files = []
    for image, kind, options in saved:
        file = io.BytesIO()
        image.save(file, kind, **options)
        files.append(file.getvalue())
    wide = (np.arange(37 * 23, dtype=np.uint16) * 70).reshape(23, 37)
    files += [cv2.imencode(suffix, wide)[1].tobytes() for suffix in (".png", ".tif")]
    return [*files, b"P3 3 1 15\n" + b"0 7 15 " * 3, b"P2 3 1 4095\n0 99 4095\n", b"P1 4 1\n0 1 1 0\n"]


def run(rng: np.random.Generator) -> str:
    """Reads one damaged file; returns "read" or "refused"."""
    data = bytes_of(rng, pick(rng, seeds()))
    truncated = pick(rng, ("refuse", "accept"))
    try:
        header = read_header(data)
    except HeaderError:
        header = None
    try:
        image = read_image(data, max_pixels=MAX_PIXELS, truncated=truncated)
    except ImageError as error:
        expect("\n" not in str(error), f"an error of several lines: {error}")
        return "refused"
    expect(header is not None, "an image without a header")
    form = image.dtype, image.ndim, image.shape[2:], image.flags.c_contiguous, image.flags.writeable
    expect(form == (np.uint8, 3, (3,), True, True), f"an image of the form {form}, {image.shape}")
    sides = sorted((header.width, header.height))
    expect(sorted(image.shape[:2]) == sides, f"a {header.kind} image of {image.shape} for a header of {sides}")
    return "read"
