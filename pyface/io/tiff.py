"""TIFF directories: the tags of a TIFF file, or of EXIF, which has the same format."""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
SAMPLES, PLANES, PREDICTOR, TILE_WIDTH, EXTRA_SAMPLES, SAMPLE_FORMAT = 277, 284, 317, 322, 338, 339

_INK_SET = 332  # a SHORT like EXTRA_SAMPLES, without meaning for grey
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 16: 8}  # bytes of a value: BYTE, ASCII, SHORT, LONG, LONG8
_CODES = {3: "H", 4: "I", 16: "Q"}


class _Entry(NamedTuple):
    """One tag: where its entry begins, and whether it is one of BigTIFF's, whose counts and values have 8 bytes."""

    at: int
    order: str
    is_big: bool
    tag: int
    form: int
    length: int

    @property
    def value_at(self) -> int:
        return self.at + (12 if self.is_big else 8)


class GreyAlpha(NamedTuple):
    """How the pixels of a grey TIFF with transparency are stored.

    Attributes:
        tile_width: Columns after which differences start again.
        is_white_zero: Whether 0 is white.
        is_premultiplied: Whether grey has been multiplied by its opacity.
        is_differenced: Whether each pixel is stored as the difference from the pixel to its left.
    """

    tile_width: int
    is_white_zero: bool
    is_premultiplied: bool
    is_differenced: bool


def read_tags(data: bytes) -> dict[int, int]:
    """Returns the tags of the first directory with their values, 0 for tags that are not a single number.

    Raises:
        struct.error: The data end before the directory does.
    """
    tags: dict[int, int] = {}
    for entry in _entries(data):
        value = 0
        if entry.length == 1 and entry.form in (_CODES if entry.is_big else (3, 4)):
            (value,) = struct.unpack_from(entry.order + _CODES[entry.form], data, entry.value_at)
        tags.setdefault(entry.tag, value)  # of a repeated tag libtiff takes the first, whatever its form
    return tags


def find_grey_alpha(data: bytes) -> GreyAlpha | None:
    """Tells whether a TIFF file holds grey and opacity in turn, in a form that `as_wide_grey` can rewrite."""
    tags = read_tags(data)
    meaning = tags.get(EXTRA_SAMPLES, 0)  # 1: opacity that grey has been multiplied by, 2: opacity, 0: something else
    bits = next((_shorts(data, entry) for entry in _entries(data) if entry.tag == BITS), ())
    is_grey_alpha = tags.get(PHOTOMETRIC, 1) in (0, 1) and tags.get(SAMPLES) == 2 and meaning in (1, 2)
    is_plain = tags.get(PLANES, 1) == 1 and tags.get(COMPRESSION, 1) not in (6, 7)  # JPEG has samples of its own
    if not (is_grey_alpha and is_plain and bits in ((8, 8), (16, 16)) and tags.get(PREDICTOR, 1) in (1, 2)):
        return None
    return GreyAlpha(
        tile_width=tags.get(TILE_WIDTH) or tags.get(WIDTH, 0),
        is_white_zero=tags.get(PHOTOMETRIC, 1) == 0,
        is_premultiplied=meaning == 1,
        is_differenced=tags.get(PREDICTOR, 1) == 2,
    )


def as_wide_grey(data: bytes) -> bytes:
    """Rewrites the tags of a grey TIFF with transparency to those of an upright grey image of twice the width.

    OpenCV reads such files without their transparency. The pixels stay as they are: grey and opacity in turn.
    """
    wide = bytearray(data)
    ones = {PHOTOMETRIC: 1, SAMPLES: 1, ORIENTATION: 1, PREDICTOR: 1}
    for entry in _entries(data):
        code = _CODES.get(entry.form)
        if entry.tag in (WIDTH, TILE_WIDTH) and code:
            (value,) = struct.unpack_from(entry.order + code, data, entry.value_at)
            if 2 * value < 1 << 8 * _SIZES[entry.form]:
                struct.pack_into(entry.order + code, wide, entry.value_at, 2 * value)
            else:  # twice 32,768 or more exceeds a SHORT; a LONG has room in the same entry
                struct.pack_into(entry.order + "H", wide, entry.at + 2, 4)
                struct.pack_into(entry.order + "I", wide, entry.value_at, 2 * value)
        elif entry.tag in ones and code:
            struct.pack_into(entry.order + code, wide, entry.value_at, ones[entry.tag])
        elif entry.tag in (BITS, SAMPLE_FORMAT):
            struct.pack_into(entry.order + ("Q" if entry.is_big else "I"), wide, entry.at + 4, 1)
        elif entry.tag == EXTRA_SAMPLES:
            struct.pack_into(entry.order + "H", wide, entry.at, _INK_SET)
    return bytes(wide)


def split_grey_alpha(wide: NDArray[Any], form: GreyAlpha) -> NDArray[Any]:
    """Splits pixels [H, 2 W], read after `as_wide_grey`, into grey and opacity [H, W, 2]."""
    image = wide.reshape(wide.shape[0], -1, 2).copy()
    if form.is_differenced:
        for x in range(0, image.shape[1], form.tile_width):
            tile = image[:, x : x + form.tile_width]
            np.cumsum(tile, axis=1, dtype=image.dtype, out=tile)
    if form.is_white_zero:
        image[..., 0] = np.iinfo(image.dtype).max - image[..., 0]
    return image


def _entries(data: bytes) -> Iterator[_Entry]:
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    is_big = version == 43
    (directory,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    if directory > len(data):  # Python may not accept such an offset
        raise struct.error("the directory lies beyond the end")
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, directory)
    start, step = directory + (8 if is_big else 2), 20 if is_big else 12
    for k in range(count):
        at = start + k * step
        yield _Entry(at, order, is_big, *struct.unpack_from(order + ("HHQ" if is_big else "HHI"), data, at))


def _shorts(data: bytes, entry: _Entry) -> tuple[int, ...]:
    """The values of a tag of SHORTs that fit into its entry, () for any other."""
    if entry.form != 3 or entry.length > (4 if entry.is_big else 2):
        return ()
    return struct.unpack_from(f"{entry.order}{entry.length}H", data, entry.value_at)
