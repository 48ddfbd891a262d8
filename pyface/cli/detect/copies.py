"""The files that `pyface detect` writes beside its results: annotated or covered images and videos, and crops."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from pyface.cli.console import print_status
from pyface.detections import Detections
from pyface.draw import draw
from pyface.io.archives import Member, member_source
from pyface.io.files import write_whole
from pyface.io.images import Pixels
from pyface.io.metadata import save_photo
from pyface.io.sources import Source, copy_name, plan_member
from pyface.io.video import CODECS, VideoError, VideoWriter
from pyface.redact import Cover, redact


class CopyError(ValueError):
    """A copy cannot be written under its name; later copies may succeed."""


@dataclass(frozen=True)
class Copies:
    """The files to write beside the results.

    Attributes:
        places: Where the copy of each image and video goes, and the folder for those of an archive; None: no copies.
        cover: How copies cover the faces; None: copies have the faces drawn instead.
        gps: Whether covered photos keep their GPS position.
        crops: Where the crops of each source are written, without their numbers and the suffix; None: no crops.
        crop_margin: Margin around the box, as a fraction of its size; None: crops are aligned.
        owned: The folders in which files may be replaced; see `own_folder`.
        taken: The names that copies and crops of images in archives already have.
    """

    places: dict[Source, Path] | None
    cover: Cover | None
    gps: bool
    crops: dict[Source, Path] | None
    crop_margin: float | None
    owned: Sequence[Path]
    taken: set[str] = field(default_factory=set)

    def add_member(self, archive: str, name: str) -> None:
        """Chooses where the copy and the crops of an archive's image go."""
        source = member_source(archive, name)
        if self.places is not None:
            self.places[source] = plan_member(self.places[archive], name, self.taken, copy_name)
        if self.crops is not None:
            self.crops[source] = plan_member(self.crops[archive], name, self.taken, lambda name, _: name)

    def video_place(self, source: Source) -> Path:
        """Returns where the copy of a video goes; one that was taken for an image gets the suffix of a video.

        Raises:
            CopyError: Something else has the name of the copy.
        """
        assert self.places is not None
        path = self.places[source]
        path = path if path.suffix.lower() == ".mp4" else path.with_name(f"{path.name}.mp4")
        with names_that_are_free():
            self._check(path)
        return path

    def mark_faces(self, image: Any, faces: Detections, ids: Sequence[int | None] | None = None) -> Pixels:
        """Returns the image with its faces covered, or drawn with their track numbers."""
        return draw(image, faces, ids=ids) if self.cover is None else redact(image, faces, self.cover)

    def save_image(self, source: str | Member, image: Any, faces: Detections) -> None:
        """Saves the copy of an image, if copies are asked for; covered ones with the metadata of the original.

        Raises:
            CopyError: Something else has the name of the copy.
            ImageError: The original cannot be read a second time, for its metadata.
        """
        if self.places is None:
            return
        path, marked = self.places[os.fspath(source)], self.mark_faces(image, faces)
        if self.cover is None:
            self._write(path, marked)
            return
        with names_that_are_free():
            self._check(path)
            save_photo(path, marked, source.file if isinstance(source, Member) else source, gps=self.gps)

    def save_crops(self, source: Source, frame: int | None, image: Any, faces: Detections) -> list[str | None]:
        """Saves the faces of an image or frame, if crops are asked for.

        Returns:
            The file of each face, None for a face whose landmarks coincide; [] if no crops are asked for.
        """
        if self.crops is None:
            return []
        start = f"{self.crops[source]}-" if frame is None else f"{self.crops[source]}-{frame:06}-"
        return [self._save_crop(Path(f"{start}{k}.png"), image, faces[k : k + 1]) for k in range(len(faces))]

    def _save_crop(self, path: Path, image: Any, face: Detections) -> str | None:
        try:
            [crop] = face.align(image) if self.crop_margin is None else face.crop(image, self.crop_margin)
        except ValueError:  # the landmarks coincide
            return None
        self._write(path, crop)
        return str(path)

    def _write(self, path: Path, image: Pixels) -> None:
        try:
            encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
        except cv2.error as error:
            raise OSError(0, f"the image cannot be encoded ({error.err})", str(path)) from None
        with names_that_are_free():
            self._check(path)
            write_whole(path, encoded.tobytes())

    def _check(self, path: Path) -> None:
        """Raises an OSError if a file has this name, unless it may be replaced."""
        if os.path.lexists(path) and not any(path.is_relative_to(folder) for folder in self.owned):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


@contextlib.contextmanager
def names_that_are_free() -> Iterator[None]:
    """Raises CopyError for files that cannot be written because their names are taken or too long."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        raise CopyError(
            f"{error.filename} cannot be written ({error.strerror}); move what is there, or choose another folder"
        ) from error


class VideoCopy:
    """The copy of a video, begun with its first frame, if copies are asked for."""

    def __init__(self, copies: Copies, source: Source) -> None:
        self._copies, self._source = copies, source
        self._is_wanted = copies.places is not None
        self._writer: VideoWriter | None = None
        self._size = (0, 0)

    def write(self, image: Pixels | None, time: float) -> None:
        """Appends a frame, or does nothing if there is no image.

        Raises:
            CopyError: The copy cannot be written under its name; later frames are then left out.
        """
        if not self._is_wanted or image is None:
            return
        if self._writer is None:
            try:
                self._writer, self._size = self._begin(), (image.shape[1], image.shape[0])
            except CopyError:
                self._is_wanted = False
                raise
        if (image.shape[1], image.shape[0]) != self._size:  # a broadcast may change its size, a file's stream may not
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        self._writer.write(image, time)

    def _begin(self) -> VideoWriter:
        path = self._copies.video_place(self._source)
        with names_that_are_free():
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = VideoWriter(path)
        except VideoError as error:
            raise CopyError(str(error)) from error
        if writer.codec != CODECS[0]:
            print_status(f"pyface: PyAV has no H.264 encoder here, so browsers cannot play {path}")
        return writer

    def __enter__(self) -> VideoCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
