"""Saving a changed photo with the metadata of its original: EXIF with the orientation, and the ICC profile."""

import io
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, JpegImagePlugin

from pyface.io.files import write_whole
from pyface.io.headers import read_header
from pyface.io.images import Pixels, read_encoded, turn_upright

ORIENTATION, EXIF, GPS, MAKER_NOTE = 0x0112, 0x8769, 0x8825, 0x927C

# What is kept of EXIF's first part: description, camera, orientation, resolution, software, date, authors. The rest of
# it is dropped, since many tags may hold thumbnails or previews, which would show what the photo no longer does.
_KEPT = (0x010E, 0x010F, 0x0110, ORIENTATION, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x0213, 0x8298)

_MOST_EXIF = 2**16 - 8  # what a JPEG segment holds


class Metadata(NamedTuple):
    """The metadata of a photo's file.

    Attributes:
        orientation: How the pixels are turned in the file, as an EXIF orientation from 1 to 8.
        exif: The EXIF block, without thumbnails and maker notes; None if there is none.
        icc: The ICC profile of RGB pixels, None if there is none.
        jpeg: Pillow's options that save a JPEG at the quality of the original; empty for other files.
    """

    orientation: int
    exif: bytes | None
    icc: bytes | None
    jpeg: dict[str, Any]


def save_photo(path: Path, image: Pixels, original: str | PathLike[str] | BinaryIO, *, gps: bool = True) -> None:
    """Saves the upright pixels of a changed photo with the metadata of the original.

    The orientation is kept, so the pixels are turned back to match it. Thumbnails, previews, maker
    notes and XMP are left out, since they may contain what was removed from the pixels.

    Args:
        path: The file, ending in .jpg, .jpeg or .png. Missing folders are created.
        image: uint8 RGB [H, W, 3], upright, as `read_image` returns it.
        original: The file that the image was read from: its path, its URL, or the open file.
        gps: Whether to keep the place where the photo was taken.

    Raises:
        ImageError: The original cannot be read.
        OSError: The copy cannot be written.
    """
    metadata = read_metadata(read_encoded(original), gps=gps)
    stored = turn_upright(image, {6: 8, 8: 6}.get(metadata.orientation, metadata.orientation))  # the other way round
    is_jpeg = path.suffix.lower() != ".png"
    options: dict[str, Any] = (metadata.jpeg or {"quality": 95}) if is_jpeg else {}
    options |= {"exif": metadata.exif} if metadata.exif else {}
    encoded = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(
        encoded, "JPEG" if is_jpeg else "PNG", icc_profile=metadata.icc, **options
    )
    write_whole(path, encoded.getvalue())


def read_metadata(data: bytes, *, gps: bool = True) -> Metadata:
    """Reads a photo's metadata; broken metadata counts as missing."""
    orientation = read_header(data).orientation
    try:
        image = _open(data)
        icc = image.info.get("icc_profile")
        icc = icc if icc and icc[16:20] == b"RGB " else None  # pixels of other colour spaces have become RGB
        return Metadata(orientation, _exif(image.getexif(), orientation, gps), icc, _jpeg_options(image))
    except Exception:  # Pillow raises many kinds, and metadata is no reason to lose a photo
        return Metadata(orientation, _exif(Image.Exif(), orientation, gps), None, {})


def _open(data: bytes) -> Image.Image:
    kind = read_header(data).kind
    if kind == "HEIC":
        from pillow_heif import HeifImageFile

        return HeifImageFile(io.BytesIO(data))
    # Not by Image.open, which refuses large images, and warns of them, whatever pyface's limit is.
    Image.init()
    return Image.OPEN[_PILLOW_KINDS.get(kind, kind)][0](io.BytesIO(data), "")


_PILLOW_KINDS = {"WebP": "WEBP", "JPEG 2000": "JPEG2000", "PNM": "PPM"}


def _exif(exif: Image.Exif, orientation: int, gps: bool) -> bytes | None:
    kept = Image.Exif()
    for tag in _KEPT:
        if tag in exif:
            kept[tag] = exif[tag]
    parts = {EXIF: {tag: value for tag, value in exif.get_ifd(EXIF).items() if tag != MAKER_NOTE}}
    parts |= {GPS: exif.get_ifd(GPS)} if gps else {}
    for part, tags in parts.items():
        if tags:
            kept[part] = tags
    if orientation != 1 or ORIENTATION in kept:
        kept[ORIENTATION] = orientation
    block = kept.tobytes() if len(kept) else None
    return block if block is None or len(block) < _MOST_EXIF else None


def _jpeg_options(image: Image.Image) -> dict[str, Any]:
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode != "RGB":
        return {}
    return {"qtables": image.quantization, "subsampling": JpegImagePlugin.get_sampling(image)}
