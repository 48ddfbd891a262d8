"""The files that `pyface detect` writes beside its results: annotated or covered images and videos, and crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from pyface.cli.console import print_status
from pyface.detections import Detections
from pyface.draw import draw
from pyface.io.files import write_whole
from pyface.io.images import Pixels
from pyface.io.metadata import save_photo
from pyface.io.sources import Source
from pyface.io.video import CODECS, FilmWriter
from pyface.redact import Cover, redact


@dataclass(frozen=True)
class Copies:
    """What to write.

    Attributes:
        places: Where the copy of each image and video goes; None: no copies.
        cover: How copies cover the faces; None: copies have the faces drawn instead.
        gps: Whether covered photos keep the place where they were taken.
        crops: Where the faces of each source go, without their numbers and the suffix; None: nowhere.
        crop_margin: What crops have around the box, as a fraction of it; None: crops are aligned.
    """

    places: dict[Source, Path] | None
    cover: Cover | None
    gps: bool
    crops: dict[Source, Path] | None
    crop_margin: float | None

    def picture(self, image: Any, faces: Detections, ids: Sequence[int | None] | None = None) -> Pixels:
        """Returns the image with its faces drawn, with the numbers of their tracks, or covered."""
        return draw(image, faces, ids=ids) if self.cover is None else redact(image, faces, self.cover)

    def save_image(self, source: str, image: Any, faces: Detections) -> None:
        """Saves the copy of an image, if copies are asked for; covered ones with the metadata of the original."""
        if self.places is None:
            return
        path, picture = self.places[source], self.picture(image, faces)
        if self.cover is None:
            _write_image(path, picture)
        else:
            save_photo(path, picture, Path(source), gps=self.gps)

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
        _write_image(path, crop)
        return str(path)


def _write_image(path: Path, image: Pixels) -> None:
    try:
        encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    except cv2.error as error:
        raise OSError(0, f"the image cannot be encoded ({error.err})", str(path)) from None
    write_whole(path, encoded.tobytes())


class FilmCopy:
    """The copy of a video, which is begun with its first frame; no path: nothing is written."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._writer: FilmWriter | None = None
        self._size = (0, 0)

    def write(self, image: Pixels | None, time: float) -> None:
        """Appends a frame; None is left out."""
        if self._path is None or image is None:
            return
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._size = FilmWriter(self._path), (image.shape[1], image.shape[0])
            if self._writer.codec != CODECS[0]:
                print_status(f"pyface: PyAV has no H.264 encoder here, so browsers do not play {self._path}")
        if (image.shape[1], image.shape[0]) != self._size:  # a broadcast may change its size, a file's stream may not
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        self._writer.write(image, time)

    def __enter__(self) -> FilmCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
