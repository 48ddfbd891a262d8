"""Photos that are saved again keep their metadata, except those that show their former pixels."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from pyface.io.images import read_image
from pyface.io.metadata import EXIF, GPS, MAKER_NOTE, ORIENTATION, read_metadata, save_photo

MAKE, THUMBNAIL_PART, TAKEN = 0x010F, 1, 0x9003
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation=1, **more):
    block = Image.Exif()
    block[MAKE], block[ORIENTATION] = "Camera", orientation
    block[EXIF] = {TAKEN: "2026:01:02 03:04:05", MAKER_NOTE: b"secret preview"}
    block[GPS] = {1: "N", 2: (48.0, 8.0, 14.0)}
    return block


def corners():
    """A photo whose corners differ: 24 rows, 40 columns."""
    image = np.zeros((24, 40, 3), np.uint8)
    image[:12, :20], image[:12, 20:], image[12:, :20] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return image


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, suffix, orientation):
    original, copy = tmp_path / f"a{suffix}", tmp_path / "out" / f"a{suffix}"
    Image.fromarray(corners()).save(original, exif=exif(orientation), icc_profile=ICC)
    upright = read_image(original)
    save_photo(copy, upright, original)
    saved = Image.open(copy)
    assert saved.size == (40, 24)  # stored as the original is
    assert saved.getexif()[ORIENTATION] == orientation
    assert saved.info["icc_profile"] == ICC
    assert np.abs(read_image(copy).astype(int) - upright).mean() < 8


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_what_is_kept(tmp_path, suffix):
    original, copy = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    Image.fromarray(corners()).save(original, exif=exif())
    for gps in (True, False):
        save_photo(copy, read_image(original), original, gps=gps)
        kept = Image.open(copy).getexif()
        assert kept[MAKE] == "Camera"
        assert kept.get_ifd(EXIF) == {TAKEN: "2026:01:02 03:04:05"}
        assert kept.get_ifd(GPS) == ({1: "N", 2: (48.0, 8.0, 14.0)} if gps else {})
        assert b"secret" not in copy.read_bytes()


def test_thumbnails_are_left_out(tmp_path):
    """A thumbnail of the photo as it was would show the faces that are covered."""
    thumbnail = io.BytesIO()
    Image.fromarray(corners()).save(thumbnail, "JPEG")
    block = exif().tobytes()[6:]
    # A second directory after the first one: JPEG data at an offset, and its length.
    first = int.from_bytes(block[4:8], "little" if block[:2] == b"II" else "big")
    order = "little" if block[:2] == b"II" else "big"
    entries = int.from_bytes(block[first : first + 2], order)
    link, end = first + 2 + 12 * entries, len(block)
    data_at = end + 2 + 12 * 2 + 4

    def entry(tag, value):
        return b"".join(number.to_bytes(size, order) for number, size in ((tag, 2), (4, 2), (1, 4), (value, 4)))

    second = (2).to_bytes(2, order) + entry(0x0201, data_at) + entry(0x0202, len(thumbnail.getvalue())) + bytes(4)
    block = block[:link] + end.to_bytes(4, order) + block[link + 4 :] + second + thumbnail.getvalue()
    original, copy = tmp_path / "a.jpg", tmp_path / "b.jpg"
    Image.fromarray(corners()).save(original, exif=b"Exif\0\0" + block)
    assert original.read_bytes().count(b"\xff\xd8\xff") == 2
    save_photo(copy, read_image(original), original)
    assert not Image.open(copy).getexif().get_ifd(THUMBNAIL_PART)
    assert copy.read_bytes().count(b"\xff\xd8\xff") == 1
    assert Image.open(copy).getexif()[MAKE] == "Camera"


def test_quality_is_that_of_the_original(tmp_path):
    original, copy = tmp_path / "a.jpg", tmp_path / "b.jpg"
    for quality in (40, 97):
        Image.fromarray(corners()).save(original, quality=quality, subsampling=0)
        save_photo(copy, read_image(original), original)
        assert Image.open(copy).quantization == Image.open(original).quantization


def test_kinds_that_become_png(tmp_path):
    Image.fromarray(corners()).save(tmp_path / "a.webp", exif=exif(6), icc_profile=ICC, lossless=True)
    Image.fromarray(corners()).save(tmp_path / "b.tif", exif=exif(6).tobytes(), icc_profile=ICC)
    for name in ("a.webp", "b.tif"):
        copy = tmp_path / f"{name}.png"
        save_photo(copy, read_image(tmp_path / name), tmp_path / name)
        np.testing.assert_array_equal(read_image(copy), read_image(tmp_path / name))
        assert Image.open(copy).info["icc_profile"] == ICC
        assert Image.open(copy).getexif()[MAKE] == "Camera"


def test_profiles_of_inks_and_greys_are_left_out(tmp_path):
    grey = ICC[:16] + b"GRAY" + ICC[20:]
    Image.fromarray(corners()[..., 0]).save(tmp_path / "a.jpg", icc_profile=grey)
    save_photo(tmp_path / "b.jpg", read_image(tmp_path / "a.jpg"), tmp_path / "a.jpg")
    assert "icc_profile" not in Image.open(tmp_path / "b.jpg").info


@pytest.mark.parametrize("block", [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_broken_exif_costs_nothing_else(tmp_path, block):
    Image.fromarray(corners()).save(tmp_path / "a.jpg", exif=block)
    save_photo(tmp_path / "b.jpg", read_image(tmp_path / "a.jpg"), tmp_path / "a.jpg")
    assert read_image(tmp_path / "b.jpg").shape == (24, 40, 3)


def test_more_exif_than_a_jpeg_holds(tmp_path):
    block = exif()
    block[EXIF] = {0x9286: bytes(70_000)}
    Image.fromarray(corners()).save(tmp_path / "a.png", exif=block)
    assert read_metadata((tmp_path / "a.png").read_bytes()).exif is None
    save_photo(tmp_path / "b.jpg", read_image(tmp_path / "a.png"), tmp_path / "a.png")
