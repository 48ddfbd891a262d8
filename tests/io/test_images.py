"""Reading pictures: every kind that people have, and every way in which a file can be wrong."""

import contextlib
import io
import os
import struct
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
    path = tmp_path / "ein Bild, 写真.dat"  # told by content, wherever it lies
    path.write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), path, str(path)):
        image = read_image(source)
        assert_form(image)
        assert difference(image, expected) < 1
    header = read_header(data)
    assert (header.width, header.height) == (90, 60)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short(kind):
    """A picture that ends early is an error: half a picture may lack the faces that someone looks for."""
    data = encode(RNG.integers(0, 256, (60, 90, 3), np.uint8), kind)
    for length in {1, 2, 12, 30, len(data) // 4, len(data) // 2, len(data) * 9 // 10}:
        with pytest.raises(ImageError, match=r"cut short|damaged|empty|no picture|decode"):
            read_image(data[:length])


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_without_its_end(progressive):
    data = encode(SMOOTH, "JPEG", progressive=progressive)
    with pytest.raises(ImageError, match="cut short"):
        read_image(data[:-2])
    assert_form(read_image(data + b"anything that follows"))


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
    bad[bad.index(b"pHYs") + 5] ^= 0xFF  # a chunk that a reader may do without
    assert difference(read_image(bytes(bad)), SMOOTH) == 0


@pytest.mark.parametrize("seed", range(300))
def test_random_damage_is_survived(seed):
    """Flipped and missing bytes give a picture or an ImageError, never anything else."""
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


def test_broken_exif_is_no_reason_to_refuse():
    data = encode(SMOOTH, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(data).shape == SMOOTH.shape


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


def test_floating_point_is_refused():
    with pytest.raises(ImageError, match="float32, save the picture with 8 or 16 bits"):
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


def test_addresses_are_no_files():
    with pytest.raises(ImageError, match="pyface reads files, not addresses: download it first"):
        read_image("https://example.org/a.jpg")


def test_files_that_are_no_pictures(tmp_path):
    cases = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"just a few words\n" * 9, "no picture of a kind that pyface reads"),
        "film.mp4": (b"\0\0\0\x20ftypisom" + bytes(99), "no picture of a kind"),
        "zero.png": (png_of_size(0, 5), "a size of 0 x 5 pixels"),
        "short.pgm": (b"P5 x", "PNM header is damaged"),
        "start.jpg": (b"\xff\xd8\xff", "cut short"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ImageError, match=f"{name}: .*{message}"):
            read_image(path)
    with pytest.raises(ImageError, match=r"gone\.jpg: there is no such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="this is a folder"):
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
        (SMOOTH.astype(np.float32), "uint8 .* got float32"),
        (SMOOTH.astype(np.uint16), "uint8 .* got uint16"),
        (SMOOTH.transpose(2, 0, 1), r"got \[3, 60, 90\], pass image.transpose\(1, 2, 0\)"),
        (SMOOTH[None], r"pass list\(images\)"),
        (SMOOTH[..., :2], r"got \[60, 90, 2\]"),
        (SMOOTH[:0], r"got \[0, 90, 3\]"),
        (torch.zeros(3, 5, 5), "uint8 .* got torch.float32"),
        (torch.zeros(5, 5, 3, dtype=torch.uint8), r"pass image.permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 5, 5, dtype=torch.uint8), r"pass list\(images\)"),
        (torch.zeros(3, 0, 5, dtype=torch.uint8), r"got \[3, 0, 5\]"),
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


def test_lazy_pil_damage():
    image = Image.open(io.BytesIO(encode(SMOOTH, "PNG")[:-200]))
    with pytest.raises(ImageError, match="PIL image"):
        read_image(image)


@pytest.mark.cuda
def test_cuda_tensor():
    if not torch.cuda.is_available():
        pytest.skip("no usable GPU on this machine")
    assert difference(read_image(torch.from_numpy(SMOOTH).permute(2, 0, 1).cuda()), SMOOTH) == 0
