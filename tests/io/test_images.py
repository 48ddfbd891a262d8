"""Reading images: every kind that people have, and every way in which a file can be wrong."""

import contextlib
import io
import os
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from pyface.io.headers import HeaderError, read_header
from pyface.io.images import ImageError, read_image

RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(RNG.integers(0, 256, (5, 6, 3), np.uint8), (90, 60), interpolation=cv2.INTER_CUBIC)  # RGB
KINDS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]


def encode(image, kind, **options) -> bytes:
    """Encodes with Pillow, an implementation other than the one under test."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if kind == "AVIF" and "quality" not in options:
        options["quality"] = 95
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(image, expected) -> float:
    assert image.shape == np.shape(expected)
    return float(np.abs(image.astype(int) - expected).mean())


def assert_form(image) -> None:
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, tmp_path):
    data = encode(SMOOTH, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    path = tmp_path / "ein Bild, 写真.dat"  # the kind is told by the content, not by the name
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path)):
        image = read_image(source)
        assert_form(image)
        assert difference(image, expected) < 1
    header = read_header(data)
    assert (header.width, header.height) == (90, 60)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short(kind):
    """An image that ends early is an error: half an image may lack the faces that someone looks for."""
    data = encode(RNG.integers(0, 256, (60, 90, 3), np.uint8), kind)
    for length in {1, 2, 12, 30, len(data) // 4, len(data) // 2, len(data) * 9 // 10}:
        with pytest.raises(ImageError, match=r"cut short|damaged|empty|not an image|decode"):
            read_image(data[:length])


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG"])
def test_a_missing_end_marker(kind):
    """Some encoders leave the end marker out though all pixels are there; an option accepts such files."""
    data = encode(SMOOTH, kind.split()[-1], **({"progressive": True} if " " in kind else {}))
    whole = read_image(data)
    for missing in range(1, 12 if kind == "PNG" else 3):
        with pytest.raises(ImageError, match=r'end marker is missing; --truncated accept \(truncated="accept"'):
            read_image(data[:-missing])
        assert np.array_equal(read_image(data[:-missing], truncated="accept"), whole)
    assert np.array_equal(read_image(data + b"anything that follows"), whole)


def test_jpeg_thumbnail_does_not_hide_the_missing_end():
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9"  # an end marker within the metadata
    data = encode(SMOOTH, "JPEG", exif=exif, comment=b"\xff\xd9")
    assert_form(read_image(data))
    with pytest.raises(ImageError, match="cut short"):
        read_image(data[: len(data) - 40])


def test_png_damage():
    data = encode(SMOOTH, "PNG")
    with pytest.raises(ImageError, match="cut short"):
        read_image(data[:-12])
    bad = bytearray(data)
    bad[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="checksum"):
        read_image(bytes(bad))
    bad = bytearray(encode(SMOOTH, "PNG", dpi=(72, 72)))
    bad[bad.index(b"pHYs") + 5] ^= 0xFF  # an ancillary chunk
    assert difference(read_image(bytes(bad)), SMOOTH) == 0


@pytest.mark.parametrize("seed", range(300))
def test_random_damage_is_survived(seed):
    """Flipped and missing bytes give an image or an ImageError, never anything else."""
    rng = np.random.default_rng(seed)
    data = bytearray(encode(SMOOTH, KINDS[seed % len(KINDS)]))
    for at in rng.integers(0, len(data) if seed % 2 else min(len(data), 64), 4):
        data[at] = rng.integers(256)
    with contextlib.suppress(ImageError):
        assert_form(read_image(bytes(data[: rng.integers(1, 2 * len(data))]), max_pixels=10**6))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(SMOOTH, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert difference(read_image(data), expected) < 1
    assert difference(read_image(Image.open(io.BytesIO(data))), expected) == 0
    assert difference(expected, SMOOTH if orientation == 1 else expected) < 5  # the reference itself


def test_orientation_keeps_transparency():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.dstack([SMOOTH, np.full((60, 90), 255, np.uint8)])
    image[:10, :, 3] = 0
    turned = read_image(encode(image, "PNG", exif=exif))
    assert turned.shape == (90, 60, 3)
    assert (turned[:, -10:] == 255).all()
    assert difference(turned[:, :-10], np.rot90(SMOOTH, -1)[:, :-10]) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"II*\0\xff\xff\xff\xff",
        b"garbage!",
        b"",
        b"II+\0\x08\0\0\0" + b"\xff" * 9,
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",  # orientation 99
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0",  # a word
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_broken_exif_means_upright(kind, exif):
    data = encode(SMOOTH, kind, exif=b"Exif\0\0" + exif)
    for source in (data, Image.open(io.BytesIO(data))):
        assert difference(read_image(source), SMOOTH) < 5


def test_sixteen_bits():
    ramp = np.linspace(0, 65535, 90).astype(np.uint16)[None].repeat(60, 0)
    expected = np.round(np.linspace(0, 255, 90)).astype(np.uint8)[None, :, None].repeat(60, 0).repeat(3, 2)
    for extension in (".png", ".tif"):
        image = read_image(cv2.imencode(extension, ramp)[1].tobytes())
        assert_form(image)
        assert np.abs(image.astype(int) - expected).max() <= 1
    assert np.abs(read_image(Image.fromarray(ramp)).astype(int) - expected).max() <= 1
    colour = np.dstack([ramp, ramp // 2, ramp * 0])  # BGR for OpenCV
    image = read_image(cv2.imencode(".png", colour)[1].tobytes())
    assert image[0, -1].tolist() == [0, 127, 255] or image[0, -1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_fewer_bits_in_a_sixteen_bit_file_are_not_black(bits):
    ramp = np.linspace(0, 2**bits - 1, 90).astype(np.uint16)[None].repeat(60, 0)
    image = read_image(cv2.imencode(".png", ramp)[1].tobytes())
    assert image.max() == 255
    assert 120 < image.mean() < 135


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("peak", [1, 15, 100, 200, 254, 255, 256, 1023, 4095, 5000, 16383, 40000, 65535])
def test_pnm_is_scaled_by_its_largest_value(kind, peak):
    levels = np.arange(256)[None].repeat(2, 0)
    values = np.round(levels * (peak / 255)).astype(int)
    expected = np.clip(np.round(values * (255 / peak)), 0, 255).astype(int)
    if kind in (1, 4):  # black and white, where 1 is black
        bits = levels > 99
        expected = np.where(bits, 0, 255)
        body = bytes(np.packbits(bits, axis=1)) if kind == 4 else " ".join(map(str, bits.ravel().astype(int))).encode()
        data = b"P%d\n256 2\n" % kind + body
    else:
        samples = values[..., None].repeat(3, 2) if kind in (3, 6) else values
        body = samples.astype("u1" if peak < 256 else ">u2").tobytes()
        data = b"P%d # a note\n256 # and\n2\n%d\n" % (kind, peak)
        data += body if kind > 3 else " ".join(map(str, samples.ravel())).encode() + b"\n"
    assert np.abs(read_image(data) - expected[..., None]).max() <= 1


@pytest.mark.parametrize("peak", [b"0", b"65536", b"x", b""])
def test_pnm_without_a_usable_largest_value(peak):
    with pytest.raises(ImageError, match="PNM header is damaged: its largest value must be from 1 to 65535"):
        read_image(b"P5 2 1 " + peak + b"\n" + bytes(8))


def test_values_above_the_largest_are_white():
    assert read_image(b"P5 2 1 100\n\x64\xff")[0, :, 0].tolist() == [255, 255]


@pytest.mark.parametrize("header", [56, 108, 124])
@pytest.mark.parametrize("alpha", [0, 255])
def test_bmp_with_an_unused_alpha_mask(header, alpha):
    """Photoshop and the clipboard of Windows declare a mask for transparency and leave all of it 0."""
    bgra = np.dstack([SMOOTH[..., ::-1], np.full(SMOOTH.shape[:2], alpha, np.uint8)])
    pixels = bgra[::-1].tobytes()
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII4I", header, 90, 60, 1, 32, 3, len(pixels), 0, 0, 0, 0, *masks).ljust(header, b"\0")
    data = b"BM" + struct.pack("<IHHI", 14 + len(info) + len(pixels), 0, 0, 14 + len(info)) + info + pixels
    for source in (data, Image.open(io.BytesIO(data))):
        assert difference(read_image(source), SMOOTH) == 0


def tiff_of(image, *, big=False, order="<", predictor=1, tile=None, photometric=1, extra=2, orientation=1) -> bytes:
    """Writes grey or grey with opacity, [H, W] or [H, W, 2] of 8 or 16 bits, uncompressed, as TIFF or BigTIFF."""
    height, width = image.shape[:2]
    samples = 1 if image.ndim == 2 else image.shape[2]
    image = image.reshape(height, width, samples)
    rows, columns = tile or (height, width)
    blocks = []
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            block = np.zeros((rows, columns, samples), image.dtype)
            part = image[top : top + rows, left : left + columns]
            block[: len(part), : part.shape[1]] = part
            if predictor == 2:
                block[:, 1:] -= block[:, :-1].copy()
            blocks.append(block.astype(image.dtype.newbyteorder(order)).tobytes())
    start = 16 if big else 8
    offsets = start + np.cumsum([0, *map(len, blocks)])
    tags = {256: width, 257: height, 258: [8 * image.itemsize] * samples, 259: 1, 262: photometric}
    tags |= {274: orientation, 277: samples, 284: 1, 317: predictor}
    tags |= {338: extra} if samples == 2 else {}
    if tile:
        tags |= {322: columns, 323: rows, 324: offsets[:-1].tolist(), 325: [len(block) for block in blocks]}
    else:
        tags |= {273: offsets[:-1].tolist(), 278: height, 279: [len(block) for block in blocks]}
    room, entries, beyond = (8, "HHQ", b"") if big else (4, "HHI", b"")
    directory = int(offsets[-1])
    after = directory + (8 if big else 2) + (room + struct.calcsize(order + entries)) * len(tags) + room
    lines = struct.pack(order + ("Q" if big else "H"), len(tags))
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, list) else [value]
        is_long = tag in (256, 257, 273, 279, 322, 323, 324, 325)
        packed = struct.pack(f"{order}{len(values)}{'I' if is_long else 'H'}", *values)
        if len(packed) > room:
            packed, beyond = struct.pack(order + ("Q" if big else "I"), after + len(beyond)), beyond + packed
        lines += struct.pack(order + entries, tag, 4 if is_long else 3, len(values)) + packed.ljust(room, b"\0")
    magic = {"<": b"II", ">": b"MM"}[order]
    head = struct.pack(order + "HHHQ", 43, 8, 0, directory) if big else struct.pack(order + "HI", 42, directory)
    return magic + head + b"".join(blocks) + lines + bytes(room) + beyond


GREY = SMOOTH[..., 0].copy()
OPACITY = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (60, 1))
ON_WHITE = np.round(GREY * (OPACITY / 255.0) + 255 - OPACITY)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deep", [False, True])
def test_bigtiff(order, deep):
    image = GREY.astype(np.uint16) * 257 if deep else GREY
    data = tiff_of(image, big=True, order=order)
    assert difference(read_image(data), np.dstack([GREY] * 3)) == 0
    header = read_header(data)
    assert (header.kind, header.width, header.height) == ("TIFF", 90, 60)
    with pytest.raises(ImageError, match=r"cut short"):
        read_image(data[:-60])
    with pytest.raises(ImageError, match="more than the limit"):
        read_image(data, max_pixels=5399)


@pytest.mark.parametrize("form", ["plain", "16 bits", "differences", "tiles", "big", "big-endian", "white is zero"])
def test_grey_tiff_with_transparency(form):
    image = np.dstack([255 - GREY if form == "white is zero" else GREY, OPACITY])
    options = {
        "differences": {"predictor": 2},
        "tiles": {"tile": (16, 32), "predictor": 2},
        "big": {"big": True},
        "big-endian": {"order": ">"},
        "white is zero": {"photometric": 0},
    }.get(form, {})
    data = tiff_of(image.astype(np.uint16) * 257 if form == "16 bits" else image, **options)
    assert np.abs(read_image(data) - ON_WHITE[..., None]).max() <= 1


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_grey_tiff_with_transparency_as_pillow_writes_it(compression):
    data = encode(Image.fromarray(np.dstack([GREY, OPACITY]), "LA"), "TIFF", compression=compression)
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.abs(read_image(source) - ON_WHITE[..., None]).max() <= 1


def test_grey_tiff_multiplied_by_its_opacity():
    multiplied = np.round(GREY * (OPACITY / 255.0)).astype(np.uint8)
    data = tiff_of(np.dstack([multiplied, OPACITY]), extra=1)
    assert np.abs(read_image(data) - ON_WHITE[..., None]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_grey_tiff_with_transparency_is_turned_upright(orientation):
    upright = np.dstack([ON_WHITE.astype(np.uint8)] * 3)
    turned = read_image(tiff_of(np.dstack([GREY, OPACITY]), orientation=orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = read_image(encode(upright, "PNG", exif=exif))
    assert np.abs(turned.astype(int) - plain).max() <= 1


def test_a_second_grey_channel_that_is_not_opacity_is_left_out():
    assert difference(read_image(tiff_of(np.dstack([GREY, OPACITY]), extra=0)), np.dstack([GREY] * 3)) == 0


def test_floating_point_is_refused():
    with pytest.raises(ImageError, match="float32; save the image with 8 or 16 bits"):
        read_image(cv2.imencode(".tif", np.zeros((4, 4), np.float32))[1].tobytes())


def test_grey_palette_and_bilevel():
    image = Image.fromarray(SMOOTH)
    for mode in ("L", "P", "1"):
        data = encode(image.convert(mode), "PNG")
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert difference(read_image(data), expected) == 0
        assert difference(read_image(image.convert(mode)), expected) == 0


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 2), ("TIFF", 1)])
def test_cmyk(kind, tolerance):
    data = encode(Image.fromarray(SMOOTH).convert("CMYK"), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert difference(read_image(data), expected) <= tolerance
    assert difference(read_image(Image.open(io.BytesIO(data))), expected) == 0


def test_transparency_lies_on_white():
    alpha = np.zeros((60, 90), np.uint8)
    alpha[20:40], alpha[40:] = 128, 255
    image = np.dstack([SMOOTH, alpha])
    expected = SMOOTH * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)
    sources = [
        encode(image, "PNG"),
        encode(image, "TIFF"),
        encode(image, "WEBP", lossless=True, exact=True),
        Image.fromarray(image),
        image,
        torch.from_numpy(image).permute(2, 0, 1),
    ]
    for source in sources:
        assert np.abs(read_image(source) - expected).max() <= 1
    assert np.abs(read_image(image[..., [2, 1, 0, 3]], bgr=True) - expected).max() <= 1
    deep = (image.astype(np.uint16) * 257)[..., [2, 1, 0, 3]]
    for extension in (".png", ".tif"):
        assert np.abs(read_image(cv2.imencode(extension, deep)[1].tobytes()) - expected).max() <= 1
    palette = Image.fromarray(SMOOTH).convert("P")
    data = encode(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert (read_image(data)[0, 0] == 255).all()
    assert (read_image(Image.open(io.BytesIO(data)))[0, 0] == 255).all()


def test_first_frame_and_first_page():
    other = Image.fromarray(255 - SMOOTH)
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        data = encode(SMOOTH, kind, save_all=True, append_images=[other])
        assert difference(read_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) < 8


@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel(kind):
    assert read_image(encode(SMOOTH[:1, :1], kind)).shape == (1, 1, 3)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file of a few hundred bytes that unpacks to any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * min(height, 10))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_bombs_are_refused_unread():
    with pytest.raises(ImageError, match=r"100000 x 100000 is more than the limit of .* raise max_pixels"):
        read_image(png_of_size(100_000, 100_000))
    with pytest.raises(ImageError, match="100 x 10 is more than the limit of 999 pixels"):
        read_image(png_of_size(100, 10), max_pixels=999)
    assert read_image(png_of_size(100, 10), max_pixels=1000).shape == (10, 100, 3)
    with pytest.raises(ImageError, match="more than the limit"):
        read_image(Image.new("L", (100, 100)), max_pixels=9999)
    for kind in KINDS:
        with pytest.raises(ImageError, match="90 x 60 is more than the limit of 5399 pixels"):
            read_image(encode(SMOOTH, kind), max_pixels=5399)


def test_a_repeated_tiff_tag_does_not_hide_the_size():
    def tiff(*tags):  # as (tag, form, value)
        entries = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
        return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)

    header = read_header(tiff((256, 4, 90_000), (256, 4, 1), (257, 4, 80_000), (257, 4, 1)))
    assert (header.width, header.height) == (90_000, 80_000)
    with pytest.raises(HeaderError, match="a size of 0 x 1 pixels"):  # a form that is not read counts all the same
        read_header(tiff((256, 16, 90_000), (256, 4, 1), (257, 4, 1)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(ImageError, match=r"(pipe.jpg|zero): this is a pipe or a device, not a file"):
            read_image(path)


def test_huge_files_are_refused_unread(tmp_path):
    path = tmp_path / "huge.pgm"
    path.write_bytes(b"P5 1 1 255\n\0")
    assert_form(read_image(path, max_pixels=1))
    os.truncate(path, 2**26 + 16 + 1)
    with pytest.raises(ImageError, match=r"huge\.pgm: the file has 67108881 bytes, more than .* raise max_pixels"):
        read_image(path, max_pixels=1)
    os.truncate(path, 2**31)  # OpenCV counts bytes in an int
    with pytest.raises(ImageError, match=r"huge\.pgm: the file must be smaller than 2 GiB; save the image"):
        read_image(path, max_pixels=2**40)


def test_files_that_are_not_images(tmp_path):
    cases = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"just a few words\n" * 9, "not an image of a kind that pyface reads"),
        "zero.png": (png_of_size(0, 5), "a size of 0 x 5 pixels"),
        "short.pgm": (b"P5 x", "PNM header is damaged"),
        "start.jpg": (b"\xff\xd8\xff", "cut short"),
        "mp4.jpg": (b"\0\0\0\x20ftypisom" + bytes(20), "this is a video; read it with pyface.video, or"),
        "avi.jpg": (b"RIFF\0\0\0\0AVI LIST", "this is a video"),
        "mkv.jpg": (b"\x1a\x45\xdf\xa3" + bytes(20), "this is a video"),
        "a.tar.gz": (b"\x1f\x8b\x08", "not an image .*; pyface.archive reads archives"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ImageError, match=f"{name}: .*{message}"):
            read_image(path)
    with pytest.raises(ImageError, match=r"gone\.jpg: there is no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match=r'this is a folder; pass the files in it, such as sorted\(Path\(".*"\)'):
        read_image(tmp_path)
    with pytest.raises(ImageError):
        read_image("a\0b.jpg")
    with pytest.raises(HeaderError, match="empty"):
        read_header(b"")


def test_arrays():
    assert read_image(SMOOTH) is SMOOTH
    assert difference(read_image(SMOOTH[..., ::-1].copy(), bgr=True), SMOOTH) == 0
    assert difference(read_image(SMOOTH[..., ::-1], bgr=True), SMOOTH) == 0  # strided
    assert difference(read_image(SMOOTH[::2, ::3]), SMOOTH[::2, ::3]) == 0
    grey = SMOOTH[..., 0]
    for source in (grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        image = read_image(source)
        assert_form(image)
        assert difference(image, np.dstack([grey] * 3)) == 0
    frozen = SMOOTH.copy()
    frozen.flags.writeable = False
    assert_form(read_image(frozen))
    assert difference(read_image(torch.from_numpy(SMOOTH).permute(2, 0, 1)), SMOOTH) == 0
    assert difference(read_image(Image.fromarray(SMOOTH), bgr=True), SMOOTH) == 0  # bgr is for arrays alone
    assert difference(read_image(encode(SMOOTH, "PNG"), bgr=True), SMOOTH) == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SMOOTH.astype(np.float32), "uint8 .* got float32; convert it first"),
        (SMOOTH / 255, r'uint8 .* got float64; pass \(image \* 255\).astype\("uint8"\)'),
        (SMOOTH.astype(np.uint16), "uint8 .* got uint16"),
        (SMOOTH.transpose(2, 0, 1), r"got \[3, 60, 90\]; pass image.transpose\(1, 2, 0\)"),
        (SMOOTH[None], r"pass list\(images\)"),
        (SMOOTH[..., :2], r"got \[60, 90, 2\]"),
        (SMOOTH[:0], r"the array has no pixels: it is \[0, 90, 3\]"),
        (torch.zeros(3, 5, 5, dtype=torch.int32), "uint8 .* got torch.int32"),
        (torch.full((3, 5, 5), 128.0), "values from 0 to 1, got 128 to 128"),
        (torch.full((3, 5, 5), -0.4), "values from 0 to 1, got -0.4 to -0.4"),
        (torch.full((3, 5, 5), float("nan")), "values from 0 to 1, got nan"),
        (io.StringIO("text"), "an open file must return bytes, got str; open it with mode 'rb'"),
        (torch.zeros(5, 5, 3, dtype=torch.uint8), r"pass image.permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 5, 5, dtype=torch.uint8), r"pass list\(images\)"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), r"the tensor has no pixels: it is \[3, 0, 5\]"),
        (Image.new("F", (5, 5)), "floating point"),
        (Image.fromarray(np.full((5, 5), 70000, np.int32)), "exceed 16 bits"),
        (None, "got NoneType"),
        (7, "got int"),
        ({"a": 1}, "got dict"),
    ],
)
def test_refusals_say_what_came_and_what_is_taken(source, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(source)
    assert "\n" not in str(caught.value)


class FailingFile(io.BytesIO):
    def read(self, size=-1):
        raise ConnectionError("the line is dead")


def closed(file):
    file.close()
    return file


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (closed(io.BytesIO(b"P5 1 1 255\n0")), "open file: the open file cannot be read .*closed"),
        (FailingFile(), r"open file: the open file cannot be read \(the line is dead\)"),
        (io.BytesIO(b""), "open file: the file is empty"),
        (io.BytesIO(b"words, words"), "open file: this is not an image"),
    ],
)
def test_open_files_that_cannot_be_read(source, message):
    with pytest.raises(ImageError, match=message):
        read_image(source)


def test_open_files(tmp_path):
    data = encode(SMOOTH, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    written = io.BytesIO()
    Image.fromarray(SMOOTH).save(written, "PNG")  # leaves it at its end
    for source in (io.BytesIO(data), written):
        assert difference(read_image(source), SMOOTH) == 0
    with open(tmp_path / "a.png", "rb") as file:
        assert difference(read_image(file), SMOOTH) == 0
        assert difference(read_image(file), SMOOTH) == 0
    with (
        open(tmp_path / "a.png", "wb") as file,
        pytest.raises(ImageError, match=r"a\.png: the open file cannot be read"),
    ):
        read_image(file)
    with pytest.raises(ImageError, match=r"more than the 67108880 that 1 pixels may take"):
        read_image(io.BytesIO(b"P5 1 1 255\n" + bytes(2**26 + 10)), max_pixels=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_floating_point_tensors(dtype):
    levels = torch.from_numpy(SMOOTH).permute(2, 0, 1)
    assert difference(read_image(levels.to(dtype) / 255), SMOOTH) == 0
    assert difference(read_image(levels[:1].to(dtype) / 255), np.dstack([SMOOTH[..., 0]] * 3)) == 0
    beyond = levels.float() / 255 * 1.003 - 0.0015  # as interpolation leaves it
    assert np.abs(read_image(beyond).astype(int) - SMOOTH).max() <= 1


class Unloadable:
    """A PIL image whose decoder fails in an unusual way."""

    size, mode, info = (4, 4), "RGB", {}

    def load(self):
        raise KeyError("tile")

    def getexif(self):
        raise AssertionError

    convert = getexif


def test_pil_images_of_every_odd_state(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(SMOOTH, "PNG"))
    with Image.open(path) as image:
        pass
    file = open(path, "rb")  # noqa: SIM115
    of_closed_file = Image.open(file)
    file.close()
    for source in (image, of_closed_file, Unloadable()):
        with pytest.raises(ImageError, match=r"Pillow cannot load its pixels .*; pass an image that is open") as caught:
            read_image(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_pil_modes(mode):
    image = Image.fromarray(np.full((6, 8, 3), 255, np.uint8))
    image = image.convert("LA" if mode == "La" else "RGBA" if mode == "RGBa" else mode).convert(mode)
    assert (read_image(image) >= 253).all()


def test_heic(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason='needs pip install "pyface-engine[heic]"')
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(SMOOTH)
    for options, expected in (({}, SMOOTH), ({"exif": exif.tobytes()}, np.rot90(SMOOTH, -1))):
        file = io.BytesIO()
        pillow_heif.from_pillow(upright).save(file, quality=95, **options)
        image = read_image(file.getvalue())
        assert_form(image)
        assert difference(image, expected) < 4
        with pytest.raises(ImageError, match="more than the limit"):
            read_image(file.getvalue(), max_pixels=5399)
        with pytest.raises(ImageError, match="pillow-heif cannot decode this HEIC image"):
            read_image(file.getvalue()[:-300])


def test_heic_without_its_reader(monkeypatch):
    size = b"\0\0\0\x14ispe" + struct.pack(">III", 0, 90, 60)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brand in (b"heic", b"heix", b"mif1", b"msf1"):
        data = b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1heic" + size
        assert read_header(data)[:3] == ("HEIC", 90, 60)
        with pytest.raises(ImageError, match=r'HEIC image, .* pip install "pyface-engine\[heic\]"'):
            read_image(data)
    avif = b"\0\0\0\x18ftypmif1" + bytes(4) + b"mif1avif" + size
    assert read_header(avif).kind == "AVIF"


def test_lazy_pil_damage():
    image = Image.open(io.BytesIO(encode(SMOOTH, "PNG")[:-200]))
    with pytest.raises(ImageError, match="PIL image"):
        read_image(image)


@pytest.mark.cuda
def test_cuda_tensor():
    if not torch.cuda.is_available():
        pytest.skip("no usable GPU on this machine")
    assert difference(read_image(torch.from_numpy(SMOOTH).permute(2, 0, 1).cuda()), SMOOTH) == 0


def test_a_bare_jpeg_2000_codestream():
    whole = cv2.imencode(".jp2", np.zeros((64, 96, 3), np.uint8))[1].tobytes()
    header = read_header(whole[whole.index(b"\xff\x4f\xff\x51") :])
    assert (header.kind, header.width, header.height) == ("JPEG 2000", 96, 64)
