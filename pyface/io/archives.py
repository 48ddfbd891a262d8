"""Images in .tar and .zip archives, read as streams: neither unpacked to disk nor held in memory as a whole."""

from __future__ import annotations

import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePath, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Self

from pyface.io.headers import HeaderError, check_kind
from pyface.io.images import MAX_PIXELS, ImageError, check_length
from pyface.io.remote import open_remote, remote_reason
from pyface.io.sources import VIDEO_SUFFIXES, count_unreadable, is_address, is_archive, is_picture, path_of

_MOST_HEADER_BYTES = 2**20  # of a long name or other facts about a tar member; the standard sets no limit
_LONG_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_LONGEST_NAME = 200  # bytes of a file name; file systems take 255, and copies add a suffix

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)
"""The exceptions of archive readers for damaged content."""


class ArchiveError(ValueError):
    """An archive cannot be read, or breaks off."""


class Member(NamedTuple):
    """An image in an archive; `os.fspath` returns the archive and the name as one path: "photos.tar/party/1.jpg".

    Attributes:
        archive: The archive, as it was given.
        name: The path within the archive.
        file: The open file, which can be read several times.
    """

    archive: str
    name: str
    file: BinaryIO

    def __fspath__(self) -> str:
        return member_source(self.archive, self.name)


def member_source(archive: str, name: str) -> str:
    """Returns the name of an archive's image in results: as if the archive were a folder."""
    return f"{archive}/{name}"


def archive(
    source: str | os.PathLike[str],
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    max_pixels: int = MAX_PIXELS,
    skipped: Counter[str] | None = None,
) -> Iterator[tuple[Member, BinaryIO]]:
    """Opens the images of an archive, in its order: .tar, also compressed by gzip, bzip2 or xz, and .zip.

    Files that are not images by their names, and hidden ones, are skipped. Reading the file of a damaged image raises
    an `ImageError`.

    Args:
        source: The path of the archive, or its URL (extra `remote`). A tar archive is read once, from beginning
            to end; a zip archive is read in parts.
        wanted: Called with each image's path in the archive; images for which it returns False are skipped.
        max_pixels: As for `read_image`; files that are too large for an image of that many pixels are not unpacked.
        skipped: Counts the images of kinds that pyface does not read, by suffix; see `find_sources`.

    Yields:
        The `Member` and its open file. `FaceDetector.stream` takes such pairs.

    Raises:
        ArchiveError: The archive cannot be read, has no images, or breaks off; the images before that were yielded.

    Example:
        >>> import tempfile, zipfile
        >>> path = os.path.join(tempfile.mkdtemp(), "a.zip")
        >>> with zipfile.ZipFile(path, "w") as file:
        ...     file.write("examples/astronaut.jpg", "in/a.jpg")
        >>> [member.name for member, file in archive(path)]
        ['in/a.jpg']
    """
    name = os.fspath(source)
    is_zip = path_of(name).lower().endswith(".zip")
    skipped = Counter() if skipped is None else skipped
    seen: dict[str, bool] = {}  # whether an image was wanted
    count = opened = 0
    try:
        for inner, open_member in (_zip_members if is_zip else _tar_members)(name):
            path = PurePosixPath(inner)
            hidden = any(part.startswith(".") and part != ".." for part in path.parts)
            is_video = path.suffix.lower() in VIDEO_SUFFIXES
            if hidden or not (is_video or is_picture(path.name)):
                skipped.update(count_unreadable([path.name]))
                continue
            count += 1
            inner = str(path)  # without "./" at its beginning
            is_new = inner not in seen
            if is_new:
                seen[inner] = wanted(inner)
            if not seen[inner]:
                continue
            full_name = member_source(name, inner)
            problem = "videos in archives are not read; unpack it" if is_video else _name_problem(inner)
            if not is_new:
                problem = "the archive has this name twice; rename one of the two"
            file: Any = _Refused(full_name, problem) if problem else open_member(full_name, max_pixels)
            opened += 1
            yield Member(name, inner, file), file
    except _DAMAGED as error:
        images = f"{opened:,} image{'' if opened == 1 else 's'}"
        if not count and isinstance(error, tarfile.TarError) and not is_archive(name):
            raise ArchiveError(f"{name} is not a .tar or .zip file") from error
        what = f"breaks off after {images}" if count else "cannot be read as an archive"
        raise ArchiveError(f"{name} {what} ({_reason(error)})") from error
    if count == 0:
        raise ArchiveError(f"{name} has no images")


_Opened = tuple[str, Callable[[str, int], Any]]  # a member's name, and what opens it as (name in results, max_pixels)


def _name_problem(name: str) -> str | None:
    """Why nothing may be saved under a member's name; None if it may."""
    if name.startswith("/") or PurePath(name).anchor or ".." in re.split(r"[/\\]", name):
        return "its path leads out of the archive; rename it"
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in name.split("/")):
        return f"its name has more than {_LONGEST_NAME} bytes; rename it"
    return None


class _Refused:
    """A member that is not read."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self._problem = name, problem

    def read(self, size: int = -1) -> bytes:
        raise ImageError(f"{self.name}: {self._problem}")


# --- tar -------------------------------------------------------------------------------------------------------------


class _Content(io.BytesIO):
    """A member in memory."""

    def __init__(self, name: str, data: bytes) -> None:
        super().__init__(data)
        self.name = name


def _tar_members(archive: str) -> Iterator[_Opened]:
    class Header(_Header):
        """One class per archive, since it records whether the end was found."""

    file = open_remote(archive) if is_address(archive) else open(archive, "rb")  # noqa: SIM115
    with file, tarfile.open(fileobj=file, mode="r|*", tarinfo=Header) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would hold one entry per member
            if info.isreg():
                yield info.name, partial(_read_tar_member, tar, info)
        if not Header.has_end:
            raise tarfile.ReadError("its end marker is missing")


def _read_tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, max_pixels: int) -> _Content | _Refused:
    content = tar.extractfile(info)
    assert content is not None  # it is a regular file
    try:
        check_length(info.size, max_pixels)
        start = content.read(32)
        check_kind(start)  # before the rest: it may be a bomb
    except HeaderError as error:
        return _Refused(name, str(error))
    return _Content(name, start + content.read())


class _Header(tarfile.TarInfo):
    """The header of a member; tells a damaged one from the end of the archive, since tarfile takes both for the end."""

    has_end = False

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: Any, errors: str) -> Self:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not any(buf) and len(buf) == tarfile.BLOCKSIZE:
                cls.has_end = True
                raise
            raise tarfile.ReadError(str(error) if buf else "its end marker is missing") from error
        if info.type in _LONG_HEADERS and info.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


# --- zip -------------------------------------------------------------------------------------------------------------


def _zip_members(archive: str) -> Iterator[_Opened]:
    # Closed with its last member, which threads may read after the end of this loop.
    file = zipfile.ZipFile(open_remote(archive, seekable=True) if is_address(archive) else archive)
    for info in file.infolist():
        if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
            yield info.filename, partial(_ZipMember, file, info)


class _ZipMember:
    """A member that is unpacked when it is read."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, max_pixels: int) -> None:
        self._archive, self._info, self.name, self._max_pixels = archive, info, name, max_pixels

    def read(self, size: int = -1) -> bytes:
        try:
            check_length(self._info.file_size, self._max_pixels)
            if self._info.flag_bits & 1:
                raise HeaderError("it is encrypted; unpack the archive with its password")
            with self._archive.open(self._info) as file:
                start = file.read(32)
                check_kind(start)  # before the rest: it may be a bomb
                return start + file.read(size - len(start) if size >= 0 else -1)
        except HeaderError as error:
            raise ImageError(f"{self.name}: {error}") from None
        except (*_DAMAGED, NotImplementedError, RuntimeError) as error:
            raise ImageError(f"{self.name}: the archive is damaged here ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return remote_reason(error) if error.strerror is None else error.strerror
    return str(error) or "it is cut short"
