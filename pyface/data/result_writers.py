"""A detector's results in annotation formats, for tools that show, correct or train on annotations.

COCO and YOLO are the formats that `pyface.data` reads; Label Studio takes predictions as tasks
(labelstud.io/guide/predictions). A result is a dictionary as `Detections.to_dict` makes it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import IO, Any
from urllib.parse import quote

import numpy as np

from pyface.data.annotations import AnnotatedImage, Box, annotated_image
from pyface.data.coco import coco_dict
from pyface.data.yolo import yolo_rows
from pyface.io.results import FinishedFile, OutputError, was_read
from pyface.io.sources import Source, is_address, source_name


def image_name(result: Mapping[str, Any]) -> str:
    """Returns the name of a result's image; frames are named as for crops, such as "video.mp4-000010".

    Example:
        >>> image_name({"source": "video.mp4", "frame": 10})
        'video.mp4-000010'
    """
    return f"{result['source']}-{result['frame']:06}" if "frame" in result else str(result["source"])


class CocoFile(FinishedFile):
    """A COCO file: every annotation has its `score` too, and its `track_id` if the face has one.

    Images that could not be read are left out.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        super().__init__(path, overwrite=overwrite)
        self._images = _JsonList(path.parent)
        self._annotations = _JsonList(path.parent)

    def write(self, result: dict[str, Any]) -> None:
        """Adds the image and its faces."""
        if not was_read(result):
            return
        faces = _with_area(result["faces"])
        annotated = _annotated(result, faces)
        content = coco_dict([annotated], [image_name(result)], [(result["height"], result["width"])])
        image = len(self._images) + 1
        self._images.add(content["images"][0] | {"id": image})
        for annotation, face in zip(content["annotations"], faces, strict=True):
            number = len(self._annotations) + 1
            track = {} if face.get("id") is None else {"track_id": face["id"]}
            self._annotations.add(annotation | {"id": number, "image_id": image, "score": face["score"]} | track)

    def finish(self) -> None:
        """Joins images and annotations into one document."""
        rest = {"categories": coco_dict([], [], [])["categories"]}
        with self.part.open("w", encoding="ascii") as file:
            for name, items in (("images", self._images), ("annotations", self._annotations)):
                file.write("{" if name == "images" else ",\n")
                file.write(f'"{name}": [\n')
                items.copy_to(file)
                file.write("\n]")
            file.write(",\n" + json.dumps(rest)[1:] + "\n")


class LabelStudioFile(FinishedFile):
    """A file of Label Studio tasks: one per image, with its faces as a prediction of rectangles.

    They are for `<RectangleLabels name="label" toName="image">` with the label "face". Images that could not be read
    are left out.

    Args:
        path: Where to write.
        model: The name of the detector.
        overwrite: Replace the file.
    """

    def __init__(self, path: Path, model: str, *, overwrite: bool = False) -> None:
        super().__init__(path, overwrite=overwrite)
        self._model = model
        self._tasks = _JsonList(path.parent)

    def write(self, result: dict[str, Any]) -> None:
        """Adds the task of an image."""
        if not was_read(result):
            return
        faces = _with_area(result["faces"], (result["width"], result["height"]))
        prediction = {
            "model_version": self._model,
            "score": max((face["score"] for face in faces), default=0.0),
            "result": [_region(k, face, result["width"], result["height"]) for k, face in enumerate(faces)],
        }
        self._tasks.add({"data": {"image": _address(result["source"])}, "predictions": [prediction]})

    def finish(self) -> None:
        """Writes the list of tasks."""
        with self.part.open("w", encoding="ascii") as file:
            file.write("[\n")
            self._tasks.copy_to(file)
            file.write("\n]\n")


class YoloFolder:
    """A folder of YOLO labels: FOLDER/labels/NAME.txt for the image FOLDER/images/NAME.jpg, which is not copied there.

    Boxes are cut at the image's borders, and landmarks beyond them are unknown. The format has no scores. Images that
    could not be read have no file; those without faces have an empty one.

    Args:
        folder: Where to write.
        paths: The path of each source below the images' folder.

    Raises:
        OutputError: The folder is a file, has labels already, or cannot be written.
    """

    def __init__(self, folder: Path, paths: Mapping[Source, str]) -> None:
        self._folder = folder / "labels"
        self._paths = {source_name(source): path for source, path in paths.items()}
        self._taken: dict[str, str] = {}
        if folder.is_file():
            raise OutputError(f"--output must be a folder for --format yolo, got the file {folder}")
        if self._folder.exists():
            raise OutputError(
                f"{self._folder} already exists, and --overwrite replaces only files; remove it, or choose another "
                "--output"
            )
        try:
            self._folder.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from None

    def __enter__(self) -> YoloFolder:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def write(self, result: dict[str, Any]) -> None:
        """Writes the labels of an image.

        Raises:
            OutputError: Another image has this label file.
            OSError: They cannot be written, for example because the disk is full.
        """
        if not was_read(result):
            return
        name = f"{self._below(result)}.txt"
        if name in self._taken:
            raise OutputError(
                f"{self._folder / name} would hold the labels of both {self._taken[name]} and {result['source']}; "
                "rename one of them, or use another --format"
            )
        self._taken[name] = result["source"]
        width, height = result["width"], result["height"]
        faces = _with_area(result["faces"], (width, height))
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yolo_rows(_annotated(result, faces), height, width), encoding="ascii")

    def _below(self, result: Mapping[str, Any]) -> str:
        """The path of the image below its folder, without its suffix."""
        source = result["source"]
        if source in self._paths:
            path = self._paths[source]
        else:  # in an archive, which takes the place of a folder
            archive = max((name for name in self._paths if source.startswith(f"{name}/")), key=len)
            path = self._paths[archive] + source[len(archive) :]
        return f"{path}-{result['frame']:06}" if "frame" in result else str(PurePath(path).with_suffix(""))


class _JsonList:
    """The items of a JSON list, on disk until they are copied to where they belong."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile("w+", dir=folder, encoding="ascii")  # noqa: SIM115
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, item: dict[str, Any]) -> None:
        self._file.write(("," if self._length else "") + json.dumps(item, allow_nan=False) + "\n")
        self._length += 1

    def copy_to(self, file: IO[str]) -> None:
        self._file.seek(0)
        for line in self._file:
            file.write(line)
        self._file.close()


def _with_area(faces: list[dict[str, Any]], size: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """Faces whose boxes have an area; with a size, boxes are cut at the borders, and landmarks beyond are unknown."""
    if size is not None:
        faces = [_within(face, *size) for face in faces]
    return [face for face in faces if face["box"][0] < face["box"][2] and face["box"][1] < face["box"][3]]


def _within(face: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    x1, y1, x2, y2 = face["box"]
    box = [max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)]
    points = face["landmarks"]
    if points is not None:
        nowhere = [np.nan, np.nan]
        points = [[x, y] if 0 <= x <= width and 0 <= y <= height else nowhere for x, y in points]
    return face | {"box": box, "landmarks": points}


def _annotated(result: Mapping[str, Any], faces: list[dict[str, Any]]) -> AnnotatedImage:
    boxes = []
    for face in faces:
        x1, y1, x2, y2 = face["box"]
        landmarks = None if face["landmarks"] is None else np.array(face["landmarks"], np.float32)
        boxes.append(Box((x1, y1, x2 - x1, y2 - y1), landmarks=landmarks))
    return annotated_image(Path(result["source"]), boxes)


def _region(number: int, face: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """A face as one of Label Studio's rectangles: in percent of the image's size."""
    x1, y1, x2, y2 = face["box"]
    return {
        "id": f"face-{number}",
        "type": "rectanglelabels",
        "from_name": "label",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": face["score"],
        "value": {
            "x": 100 * x1 / width,
            "y": 100 * y1 / height,
            "width": 100 * (x2 - x1) / width,
            "height": 100 * (y2 - y1) / height,
            "rotation": 0,
            "rectanglelabels": ["face"],
        },
    }


def _address(source: str) -> str:
    """Where Label Studio finds an image: files below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""
    if is_address(source):
        return source
    return f"/data/local-files/?d={quote(PurePath(source).as_posix(), errors='surrogateescape')}"
