"""Headers of image files, read before decoding: kind, size, orientation, and whether the file is complete.

OpenCV decodes the pixels, but reports nothing beforehand. Reading the header first lets pyface refuse a decompression
bomb before it takes memory, notice a file that was cut short (which some OpenCV versions fill with grey without an
error), turn an image upright while keeping its transparency, and say in words what is wrong.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyface.io import tiff

KINDS = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000 and PNM"


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        kind: The file format, for example ``"JPEG"``; detected from the content, never from the file's name.
        width: Columns as stored, before the orientation is applied.
        height: Rows as stored.
        orientation: How to turn the decoded pixels upright, as an EXIF orientation from 1 (nothing to do) to 8.
        cmyk: True for pixels that are four inks rather than colour with transparency, where the header says so.
        peak: The value that stands for white, where the decoder leaves the values as they are; None: the largest that
            the decoded dtype holds.
        lacks: The end marker, if that is all the file lacks; empty for a complete file.
    """

    kind: str
    width: int
    height: int
    orientation: int = 1
    cmyk: bool = False
    peak: int | None = None
    lacks: bytes = b""


class HeaderError(ValueError):
    """A file is not an image, or is damaged; the text is the reason without the file's name."""


def read_header(data: bytes) -> Header:
    """Reads the header of a whole image file.

    Args:
        data: The content of the file.

    Returns:
        The header.

    Raises:
        HeaderError: The content is empty, of no known kind, damaged, or cut short.

    Example:
        >>> read_header(b"P5 4 3 255\\n" + bytes(12))
        Header(kind='PNM', width=4, height=3, orientation=1, cmyk=False, peak=255, lacks=b'')
    """
    reader = _reader(data)
    try:
        header = reader(data)
    except (struct.error, IndexError):
        raise HeaderError("the file is cut short") from None
    if header.width < 1 or header.height < 1:
        raise HeaderError(f"its {header.kind} header gives a size of {header.width} x {header.height} pixels")
    return header


def check_kind(start: bytes) -> None:
    """Raises HeaderError unless a file that begins with these bytes (32 are enough) is an image of a known kind."""
    _reader(start)


def _reader(data: bytes) -> Callable[[bytes], Header]:
    if not data:
        raise HeaderError("the file is empty")
    for pattern, reader in _READERS:
        if pattern.match(data):
            return reader
    if _VIDEO.match(data):
        raise HeaderError("this is a video; read it with pyface.video, or rename it to .mp4 for pyface detect")
    raise HeaderError(f"this is not an image of a kind that pyface reads ({KINDS})")


def _jpeg(data: bytes) -> Header:
    width = height = 0
    orientation = 1
    lacks = b""
    for marker, start, end in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame; the others are tables
            height, width = struct.unpack_from(">HH", data, start + 1)
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", start):
            orientation = _exif_orientation(data[start + 6 : end])
        elif marker == 0xDA:
            # Compressed pixels escape every FF, so the end marker cannot appear within them.
            if data.find(b"\xff\xd9", end) < 0:
                lacks = b"\xd9" if data.endswith(b"\xff") else b"\xff\xd9"
            break
    return Header("JPEG", width, height, orientation, lacks=lacks)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of the payloads up to the first scan."""
    at = 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if data[at] != 0xFF:
            raise HeaderError(f"the JPEG file is damaged at byte {at}")
        marker = data[at + 1]
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:  # markers without a payload
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, at + 4, at + 2 + length
        at += 2 + length


def _png(data: bytes) -> Header:
    width, height = struct.unpack_from(">II", data, 16)
    orientation = 1
    at, view = 8, memoryview(data)
    has_pixels = False
    while True:
        rest = data[at : at + len(_PNG_END)]
        if has_pixels and rest != _PNG_END and _PNG_END.startswith(rest):
            return Header("PNG", width, height, orientation, lacks=_PNG_END[len(rest) :])
        length, name = struct.unpack_from(">I4s", data, at)
        start, end = at + 8, at + 8 + length
        (checksum,) = struct.unpack_from(">I", data, end)
        # A lower-case first letter marks a chunk that readers may skip, damaged or not.
        if not name[0] & 0x20 and zlib.crc32(view[at + 4 : end]) != checksum:
            raise HeaderError(f"the PNG file is damaged: the checksum of its chunk at byte {at} does not match")
        if name == b"eXIf":
            orientation = _exif_orientation(data[start:end])
        elif name == b"IEND":
            return Header("PNG", width, height, orientation)
        has_pixels |= name == b"IDAT"
        at = end + 4


_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def _gif(data: bytes) -> Header:
    return Header("GIF", *struct.unpack_from("<HH", data, 6))


def _bmp(data: bytes) -> Header:
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    return Header("BMP", width, abs(height))  # a negative height means rows from top to bottom


def _webp(data: bytes) -> Header:
    size = struct.unpack_from("<I", data, 4)[0] + 8
    if len(data) < size - size % 2:
        raise HeaderError(f"the WebP file is cut short: {len(data)} of {size} bytes are there")
    form = data[12:16]
    if form == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif form == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    orientation, at = 1, 12
    while at + 8 <= size:
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return Header("WebP", width, height, orientation)


def _tiff(data: bytes) -> Header:
    tags = tiff.read_tags(data)
    # OpenCV's TIFF decoder, alone among its decoders, always applies the orientation. Grey with transparency does not
    # reach it as such, see `tiff.as_wide_grey`.
    orientation = tags.get(tiff.ORIENTATION, 1) if tiff.find_grey_alpha(data) else 1
    is_cmyk = tags.get(tiff.PHOTOMETRIC) == 5
    return Header("TIFF", tags.get(tiff.WIDTH, 0), tags.get(tiff.HEIGHT, 0), orientation, is_cmyk)


def _exif_orientation(exif: bytes) -> int:
    try:
        orientation = tiff.read_tags(exif).get(tiff.ORIENTATION, 1)
    except struct.error:  # broken EXIF does not make the pixels unreadable
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _avif(data: bytes) -> Header:
    width, height = _largest_part("AVIF", data)
    turn, mirror = (data.find(box, 0, 1 << 20) for box in (b"irot", b"imir"))
    turns = data[turn + 4] & 3 if turn >= 0 else 0  # quarter turns, anti-clockwise
    axis = data[mirror + 4] & 1 if mirror >= 0 else None
    return Header("AVIF", width, height, _AVIF_ORIENTATIONS[turns, axis])


def _heif(data: bytes) -> Header:
    (brands_end,) = struct.unpack_from(">I", data)
    if b"avif" in data[16:brands_end]:
        return _avif(data)
    return Header("HEIC", *_largest_part("HEIC", data))  # its decoder turns it upright


def _largest_part(kind: str, data: bytes) -> tuple[int, int]:
    """Width and height of the image: thumbnails, tiles and the transparency, which have sizes too, are no larger."""
    sizes = [struct.unpack_from(">II", data, found.end() + 4) for found in re.finditer(b"ispe", data[: 1 << 20])]
    if not sizes:
        raise HeaderError(f"the {kind} file is cut short or damaged: its size is missing")
    return max(sizes, key=lambda size: size[0] * size[1])


# AVIF writes an orientation as a turn and then a mirror (0 swaps top and bottom, 1 left and right), EXIF as one number.
_AVIF_ORIENTATIONS = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6,
    (0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7,
    (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5,
}  # fmt: skip


def _jp2(data: bytes) -> Header:
    found = data.find(b"ihdr")
    if found < 0:
        raise HeaderError("the JPEG 2000 file is cut short or damaged: its size is missing")
    height, width = struct.unpack_from(">II", data, found + 4)
    return Header("JPEG 2000", width, height)


def _j2k(data: bytes) -> Header:
    right, bottom, left, top = struct.unpack_from(">IIII", data, 8)
    return Header("JPEG 2000", right - left, bottom - top)


def _pnm(data: bytes) -> Header:
    number = rb"(?:\s|#[^\n]*\n)+(\d{1,9})"
    found = re.match(rb"P([1-6])" + 2 * number, data)
    if not found:
        raise HeaderError("the PNM header is damaged")
    size = int(found[2]), int(found[3])
    if found[1] in b"14":  # black and white
        return Header("PNM", *size)
    rest = re.match(number, data[found.end() :])
    peak = int(rest[1]) if rest else 0
    if not 1 <= peak <= 65535:
        raise HeaderError("the PNM header is damaged: its largest value must be from 1 to 65535")
    # OpenCV scales 8-bit values that are written as digits itself.
    return Header("PNM", *size, peak=None if found[1] in b"23" and peak < 256 else peak)


_VIDEO = re.compile(rb"....ftyp|RIFF....AVI |\x1a\x45\xdf\xa3", re.DOTALL)  # MP4 and MOV, AVI, Matroska and WebM

_READERS = [
    (re.compile(pattern, re.DOTALL), reader)
    for pattern, reader in (
        (rb"\xff\xd8\xff", _jpeg),
        (rb"\x89PNG\r\n\x1a\n", _png),
        (rb"RIFF....WEBP", _webp),
        (rb"GIF8[79]a", _gif),
        (rb"BM.{4}\0{4}", _bmp),
        (rb"II[*+]\0|MM\0[*+]", _tiff),
        (rb"....ftypavi[fs]", _avif),
        (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", _heif),
        (rb"\0\0\0\x0cjP  \r\n\x87\n", _jp2),
        (rb"\xff\x4f\xff\x51", _j2k),
        (rb"P[1-6][\s#]", _pnm),
    )
]
