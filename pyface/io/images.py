"""Reads images of every kind into one form: uint8 RGB, rows x columns x 3, upright."""

import io
import os
import stat
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyface.io import tiff
from pyface.io.headers import Header, HeaderError, check_kind, read_header
from pyface.io.remote import RemoteError, open_remote
from pyface.io.sources import is_address, is_archive

Pixels: TypeAlias = NDArray[np.uint8]
Truncated: TypeAlias = Literal["refuse", "accept"]

MAX_PIXELS = 2**27
"""Images with more pixels are refused unless the caller raises the limit: 134 million, 0.4 GB once decoded."""

_MAX_EXTRA_BYTES = 2**26  # what a file may hold besides 16 bytes per pixel: metadata, thumbnails, further pages
_MAX_BYTES = 2**31 - 1  # OpenCV decodes no larger files


class ImageError(ValueError):
    """An image cannot be read; the text names the image, and says why and what to do."""


def read_image(
    source: Any, *, bgr: bool = False, max_pixels: int = MAX_PIXELS, truncated: Truncated = "refuse"
) -> Pixels:
    """Reads an image of any accepted kind, as a viewer would show it.

    Files are read by content, not by name: JPEG, PNG, WebP, GIF (first frame), BMP, TIFF (first page), AVIF,
    JPEG 2000, PNM, and HEIC if pillow-heif is installed. An image is turned upright by its EXIF orientation; broken
    EXIF counts as none. Grey and CMYK become RGB, and transparent images are composited onto white. 16-bit pixels are
    scaled by their full range, or the one that a PNM file declares. If none of them reaches a sixteenth of the full
    range, they are treated as 10-bit or 12-bit pixels in a 16-bit file, which would otherwise look black.

    Args:
        source: One of: a path; a URL such as https://... or s3://... (extra `remote`); the bytes of an image file;
            a file opened for reading bytes, which is read from its beginning; a PIL image; a uint8 numpy array [H, W],
            [H, W, 1], [H, W, 3] or [H, W, 4]; a tensor [H, W], [1, H, W], [3, H, W] or [4, H, W] on any device, uint8
            or floating point with values from 0 to 1.
        bgr: Numpy arrays are BGR or BGRA, as OpenCV reads them; no other kind of source is affected.
        max_pixels: Refuse images with more than this many pixels, before they are decoded.
        truncated: "refuse" JPEG and PNG files without their end marker, or "accept" them: some encoders leave it out.
            If pixels are missing too, they come out grey, or the file is refused all the same.

    Returns:
        uint8 [H, W, 3], contiguous and writeable. An array that already has this form is returned itself, not a copy.

    Raises:
        ImageError: The source is of an unsupported kind, missing, unreadable, empty, not an image, damaged, cut short,
            or too large.

    Example:
        >>> read_image(b"P5 2 1 255\\n\\x00\\xff").tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    image = decode_image(open_image(source, bgr=bgr, max_pixels=max_pixels, truncated=truncated))
    return image.cpu().numpy() if isinstance(image, Tensor) else image


class KindError(ImageError):
    """The content of a URL is not an image; it may be a video."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file in memory that is known to be complete and of an accepted size, but is not decoded yet."""

    name: str
    data: bytes
    header: Header

    @property
    def pixels(self) -> int:
        """Number of pixels once decoded."""
        return self.header.width * self.header.height


def open_image(
    source: Any, *, bgr: bool = False, max_pixels: int = MAX_PIXELS, truncated: Truncated = "refuse"
) -> EncodedImage | Pixels | Tensor:
    """Does what `read_image` does up to the decoding, so that the size is known before memory is allocated.

    Tensors come back as tensors [H, W, 3] on their device. Arguments and errors are those of `read_image`.
    """
    if isinstance(source, str | os.PathLike):
        return _open_encoded(os.fsdecode(source), read_encoded(source, max_pixels), max_pixels, truncated)
    if isinstance(source, bytes | bytearray | memoryview):
        return _open_encoded(f"image of {len(source)} bytes", bytes(source), max_pixels, truncated)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, bgr)
    if hasattr(source, "getexif") and hasattr(source, "convert"):  # Pillow is not required, so it is not imported
        return _from_pil(source, f"PIL image {getattr(source, 'filename', '')}".rstrip(), max_pixels)
    if hasattr(source, "read"):
        return _open_encoded(_name_of(source), read_encoded(source, max_pixels), max_pixels, truncated)
    raise ImageError(
        f"an image must be a path, bytes, an open file, a PIL image, a uint8 numpy array [H, W, 3], a tensor "
        f"[3, H, W] or a list of these, got {type(source).__name__}"
        + (" (cv2.imread returns None for a file that it cannot read)" if source is None else "")
    )


def decode_image(opened: EncodedImage | Pixels | Tensor) -> Pixels | Tensor:
    """Decodes what `open_image` returned; arrays and tensors are passed through.

    Raises:
        ImageError: The pixels are damaged, or of a type that is not supported (floating point).
    """
    if not isinstance(opened, EncodedImage):
        return opened
    name, header = opened.name, opened.header
    if header.kind == "HEIC":
        return _decode_heic(opened)
    form = tiff.find_grey_alpha(opened.data) if header.kind == "TIFF" else None
    if form is None:
        image = _decode_by_opencv(opened, opened.data)
        # OpenCV reads 8-bit TIFF through an interface of libtiff that multiplies the colours by their opacity.
        premultiplied = header.kind == "TIFF" and image.dtype == np.uint8
    else:
        image = _decode_grey_alpha(opened, form)
        premultiplied = form.is_premultiplied
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name}: its pixels are {image.dtype}; save the image with 8 or 16 bits per channel")
    if header.kind == "BMP" and _is_unused_alpha(image):
        image = np.ascontiguousarray(image[..., :3])
    image = _to_rgb(_to_8_bits(image, header.peak), bgr=True, premultiplied=premultiplied)
    return np.ascontiguousarray(turn_upright(image, header.orientation))


def _decode_grey_alpha(opened: EncodedImage, form: tiff.GreyAlpha) -> NDArray[Any]:
    wide = _decode_by_opencv(opened, tiff.as_wide_grey(opened.data))
    if wide.shape != (opened.header.height, 2 * opened.header.width):
        raise ImageError(f"{opened.name}: the TIFF file is damaged: it does not hold as many pixels as its header says")
    return np.ascontiguousarray(tiff.split_grey_alpha(wide, form)[..., [0, 0, 0, 1]])


def _decode_by_opencv(opened: EncodedImage, data: bytes) -> NDArray[Any]:
    header = opened.header
    # IMREAD_UNCHANGED keeps 16 bits and transparency, but would pass inks off as RGBA.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if header.cmyk else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{opened.name}: OpenCV cannot decode this {header.kind} image ({error.err})") from None
    if image is None:
        raise ImageError(
            f"{opened.name}: OpenCV {cv2.__version__} cannot decode this {header.kind} image: it is damaged, cut "
            f"short or in an uncommon format"
        )
    return image


def _decode_heic(opened: EncodedImage) -> Pixels:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(
            f"{opened.name}: this is a HEIC image, for which pyface needs pillow-heif: "
            f'pip install "pyface-engine[heic]"'
        ) from None
    try:
        image = HeifImageFile(io.BytesIO(opened.data))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # pillow-heif raises several kinds
        raise ImageError(f"{opened.name}: pillow-heif cannot decode this HEIC image ({_brief(error)})") from None
    return _from_pil(image, opened.name, opened.pixels)


def _is_unused_alpha(image: NDArray[Any]) -> bool:
    """Whether all pixels are transparent, which in BMP means that the program that wrote it ignores transparency."""
    return image.ndim == 3 and image.shape[2] == 4 and not image[..., 3].any()


def _open_encoded(name: str, data: bytes, max_pixels: int, truncated: Truncated) -> EncodedImage:
    try:
        header = read_header(data)
    except HeaderError as error:
        raise ImageError(f"{name}: {error}") from None
    if header.lacks and truncated != "accept":
        raise ImageError(
            f"{name}: the {header.kind} file is cut short: its end marker is missing; "
            f'--truncated accept (truncated="accept" in Python) reads what is there'
        )
    _check_size(name, header.width, header.height, max_pixels)
    return EncodedImage(name, data + header.lacks, header)


def read_encoded(source: str | os.PathLike[str] | BinaryIO, max_pixels: int = MAX_PIXELS) -> bytes:
    """Reads a whole image file without decoding it, given its path, its URL, or the file opened for reading.

    Raises:
        ImageError: It cannot be read, or is too large for an image of `max_pixels` pixels.
    """
    if not isinstance(source, str | os.PathLike):
        return _read_stream(source, max_pixels)
    name = os.fsdecode(source)
    return _read_remote(name, max_pixels) if is_address(name) else _read_file(name, max_pixels)


def _read_file(path: str, max_pixels: int) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):  # open() refuses folders
            raise HeaderError("this is a pipe or a device, not a file; save the image to a file and pass that")
        with open(path, "rb") as file:
            start = file.read(32)
            check_kind(start)  # before the rest: the file may be a video
            check_length(status.st_size, max_pixels)
            file.seek(0)
            return file.read()
    except (HeaderError, OSError, ValueError) as error:  # ValueError: a path with a null character
        hint = "; pyface.archive reads archives" if isinstance(error, HeaderError) and is_archive(path) else ""
        raise ImageError(f"{path}: {_reason(error)}{hint}") from None


def _read_remote(address: str, max_pixels: int) -> bytes:
    try:
        with open_remote(address) as file:
            data = bytearray(_read_up_to(file, 32))
            check_kind(bytes(data))  # before the rest: it may be a video that never ends
            data += _read_up_to(file, _most_bytes(max_pixels) + 1 - len(data))
    except RemoteError as error:
        raise ImageError(f"{address}: {error}") from None
    except HeaderError as error:
        raise KindError(f"{address}: {error}") from None
    try:
        check_length(len(data), max_pixels)
    except HeaderError as error:
        raise ImageError(f"{address}: {error}") from None
    return bytes(data)


def _read_up_to(file: BinaryIO, size: int) -> bytes:
    """Reads up to this many bytes; a network stream returns fewer at a time."""
    parts: list[bytes] = []
    while size > 0 and (part := file.read(min(size, 2**20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _name_of(file: Any) -> str:
    name = getattr(file, "name", None)
    return os.fsdecode(name) if isinstance(name, str | bytes) else "open file"


def _read_stream(file: BinaryIO, max_pixels: int) -> bytes:
    """Reads a file object, from its beginning if it can be rewound."""
    name = _name_of(file)
    try:
        if hasattr(file, "seek") and (not hasattr(file, "seekable") or file.seekable()):
            file.seek(0)
        data = file.read(_most_bytes(max_pixels) + 1)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # closed, opened for writing, a broken connection ...
        raise ImageError(f"{name}: the open file cannot be read ({_brief(error)})") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        got = type(data).__name__
        raise ImageError(f"{name}: an open file must return bytes, got {got}; open it with mode 'rb'")
    try:
        check_length(len(data), max_pixels)
    except HeaderError as error:
        raise ImageError(f"{name}: {error}") from None
    return bytes(data)


def _most_bytes(max_pixels: int) -> int:
    return min(16 * max_pixels + _MAX_EXTRA_BYTES, _MAX_BYTES)


def check_length(length: int, max_pixels: int) -> None:
    """Raises HeaderError if a file of this length is too large for an image of `max_pixels` pixels."""
    if length > _MAX_BYTES:
        raise HeaderError("the file must be smaller than 2 GiB; save the image in a compressed format")
    if length > _most_bytes(max_pixels):
        raise HeaderError(
            f"the file has {length} bytes, more than the {_most_bytes(max_pixels)} that {max_pixels} pixels may take; "
            f"raise max_pixels (--max-pixels in a shell) if you trust the image and have the memory"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return f"this is a folder; {folder_advice(error.filename)}"
    if isinstance(error, OSError):
        return f"the file cannot be read ({error.strerror or error})"
    return str(error)


def folder_advice(folder: str) -> str:
    """Says how to pass the images of a folder."""
    return f'pass the files in it, such as sorted(Path("{folder}").glob("*.jpg"))'


def _brief(error: Exception) -> str:
    """The first line of an error's text, which other libraries may leave empty."""
    return next((line.strip() for line in str(error).splitlines()), type(error).__name__)


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} is more than the limit of {max_pixels} pixels; "
            f"raise max_pixels (--max-pixels in a shell) if you trust the image and have the memory"
        )


def _from_array(array: NDArray[Any], bgr: bool) -> Pixels:
    if array.dtype != np.uint8:
        is_scaled = array.dtype.kind == "f" and array.size > 0 and array.min() >= 0 and array.max() <= 1
        advice = 'pass (image * 255).astype("uint8")' if is_scaled else "convert it first"
        raise ImageError(f"an array must be uint8 with values from 0 to 255, got {array.dtype}; {advice}")
    if array.size == 0:
        raise ImageError(f"the array has no pixels: it is {list(array.shape)}")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        hint = _hint(array, channels_first=False)
        raise ImageError(f"an array must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}{hint}")
    rgb = np.ascontiguousarray(_to_rgb(np.ascontiguousarray(array), bgr))
    return rgb if rgb.flags.writeable else rgb.copy()  # torch takes only memory that it may write to


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.numel() == 0:
        raise ImageError(f"the tensor has no pixels: it is {list(tensor.shape)}")
    if not (tensor.dim() == 2 or (tensor.dim() == 3 and tensor.shape[0] in (1, 3, 4))):
        hint = _hint(tensor, channels_first=True)
        raise ImageError(f"a tensor must be [3, H, W], [1, H, W], [4, H, W] or [H, W], got {list(tensor.shape)}{hint}")
    image = _as_bytes(tensor.detach())
    image = image[None] if image.dim() == 2 else image
    if image.shape[0] == 4:
        colour, alpha = image[:3].int(), image[3:].int()
        image = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)
    return image.expand(3, -1, -1).permute(1, 2, 0).contiguous()


def _as_bytes(tensor: Tensor) -> Tensor:
    """Converts a tensor of uint8, or of floating-point values from 0 to 1, to uint8."""
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise ImageError(
            f"a tensor must be uint8 with values from 0 to 255 or floating point with values from 0 to 1, got "
            f"{tensor.dtype}; convert it first"
        )
    levels = tensor.float() * 255
    least, most = (levels.min().item() / 255, levels.max().item() / 255)
    if not (least > -_HALF_LEVEL and most < 1 + _HALF_LEVEL):  # NaN is refused too
        raise ImageError(
            f"a floating-point tensor must hold values from 0 to 1, got {least:.3g} to {most:.3g}; undo what scaled "
            f"it, or convert it to uint8 with values from 0 to 255"
        )
    return levels.round().clamp(0, 255).to(torch.uint8)


_HALF_LEVEL = 0.5 / 255  # what interpolation may add or take away without changing the rounded value


def _hint(image: NDArray[Any] | Tensor, *, channels_first: bool) -> str:
    shape = image.shape
    if len(shape) == 4:
        return "; pass list(images) for several images"
    if len(shape) == 3 and not channels_first and shape[0] in (1, 3, 4):
        return "; pass image.transpose(1, 2, 0)"
    if len(shape) == 3 and channels_first and shape[2] in (1, 3, 4):
        return "; pass image.permute(2, 0, 1)"
    return ""


def _from_pil(image: Any, name: str, max_pixels: int) -> Pixels:
    try:
        width, height = image.size
        _check_size(name, width, height, max_pixels)
        image.load()  # before the orientation: Pillow turns some kinds upright itself and then clears it
        rgb = _pixels_of_pil(image, name)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow decodes late, so all kinds of damage show here, and closed files too
        raise ImageError(
            f"{name}: Pillow cannot load its pixels ({_brief(error)}); pass an image that is open and "
            f"whole, of mode RGB or L"
        ) from None
    return np.ascontiguousarray(turn_upright(rgb, _orientation_of_pil(image)))


def _pixels_of_pil(image: Any, name: str) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits, in 32 where Pillow is old
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ImageError(f"{name}: its values exceed 16 bits; convert it to mode L or RGB first")
        return _to_rgb(_to_8_bits(pixels.astype(np.uint16)), bgr=False)
    if image.mode == "F":
        raise ImageError(f"{name}: its pixels are floating point; convert it to mode L or RGB first")
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info
    pixels = np.array(image.convert("RGBA" if transparent else "RGB"))
    if getattr(image, "format", None) in ("BMP", "DIB") and _is_unused_alpha(pixels):
        pixels = np.ascontiguousarray(pixels[..., :3])
    return _to_rgb(pixels, bgr=False)


def _orientation_of_pil(image: Any) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF does not make the pixels unreadable
        return 1


def _to_8_bits(image: NDArray[Any], peak: int | None = None) -> NDArray[Any]:
    """Scales pixels so that white is 255; `peak` is the value of white if the file says so."""
    if peak is not None and peak < 65535:
        return cv2.convertScaleAbs(image, alpha=255 / peak).reshape(image.shape)
    if image.dtype == np.uint8:
        return image
    largest = int(image.max())
    bits = max(8, largest.bit_length()) if largest < 4096 else 16
    return cv2.convertScaleAbs(image, alpha=255 / (2**bits - 1)).reshape(image.shape)


def _to_rgb(image: NDArray[Any], bgr: bool, premultiplied: bool = False) -> NDArray[Any]:
    """Makes [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] RGB; transparent pixels are composited onto white."""
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if channels == 4:
        colour, alpha = image[..., :3], image[..., 3:].astype(np.uint16)
        if premultiplied:
            image = np.minimum(colour + (255 - alpha), 255).astype(np.uint8)
        else:  # at most 255 * 255 + 127, which 16 bits hold
            image = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if bgr else image


def turn_upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undoes an EXIF orientation: 5 to 8 swap rows and columns, the others mirror or turn by 180 degrees."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
