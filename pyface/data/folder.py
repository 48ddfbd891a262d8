"""Data folders: annotated images for training and evaluation, in the formats of WIDER FACE, COCO or YOLO.

The format is detected from the content: `bbx_gt.txt` (WIDER FACE), a JSON file with "images" and "annotations"
(COCO), `labels/` (YOLO), or nothing but `images/`: the images have no faces. The path of a COCO file stands for the
folder that it is in, or for the one above if that is `annotations/`; without `images/`, images are directly in it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from pyface.data.annotations import AnnotatedImage, DatasetError, ImageRecord, annotated_image, size_of
from pyface.data.coco import annotation_file, coco_dict, read_coco
from pyface.data.wider import read_wider, wider_rows
from pyface.data.yolo import read_yolo, yolo_rows
from pyface.io.sources import IMAGE_SUFFIXES, is_picture

Format = Literal["wider", "coco", "yolo"]


def read_folder(folder: str | Path) -> list[AnnotatedImage]:
    """Reads a data folder; images are not decoded.

    Raises:
        DatasetError: There are no images, annotations are in two formats, or a file is missing or malformed.
    """
    return [annotated_image(image.path, image.boxes) for image in read_records(folder)]


def read_records(folder: str | Path) -> list[ImageRecord]:
    """Reads a data folder with its annotations as they are in the files.

    Raises:
        DatasetError: As for `read_folder`.
    """
    layout = _layout(Path(folder))
    if len(layout.readers) > 1:
        kinds = " and ".join(layout.readers)
        raise DatasetError(f"{folder} must have annotations in one format, got {kinds}; move one away")
    for read in layout.readers.values():
        return read()
    files = _images(layout.images)
    if not files:
        raise DatasetError(f"{layout.images} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return [ImageRecord(path, path.relative_to(layout.images).as_posix(), []) for path in files]


def annotations_in(folder: str | Path) -> list[str]:
    """The names of the annotations in a data folder, such as `bbx_gt.txt`; none in a folder of images alone."""
    return list(_layout(Path(folder)).readers)


def unlisted(folder: str | Path) -> list[str]:
    """The images in a data folder that its annotations do not name; none in formats where such images have no faces."""
    images = _layout(Path(folder)).images
    known = {image.path for image in read_records(folder)}
    return [path.relative_to(images).as_posix() for path in _images(images) if path not in known]


def write_folder(images: Sequence[AnnotatedImage], names: Sequence[str], folder: Path, form: Format) -> None:
    """Writes a data folder: copies of the images, and their annotations.

    Args:
        images: The images and annotations.
        names: Each image's path within `images/`.
        folder: The folder; it must not exist.
        form: "wider", "coco", or "yolo", which has no ignore boxes.

    Raises:
        FileExistsError: The folder exists.
        DatasetError: An image cannot be read, or two would have the same name (in YOLO's format, the same label file).
    """
    files = [str(Path(name).with_suffix(".txt")) if form == "yolo" else name for name in names]
    twice = [name for name, count in Counter(files).items() if count > 1]
    if twice:
        raise DatasetError(f"every image must have a name of its own in {folder}, got two for {twice[0]}; rename one")
    folder.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(size_of, (image.path for image in images)))
    for image, name in zip(images, names, strict=True):
        target = folder / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image.path, target)
    if form == "wider":
        parts = [wider_rows(image, name) for image, name in zip(images, names, strict=True)]
        for file, texts in zip(("bbx_gt.txt", "landmarks.txt"), zip(*parts, strict=True), strict=True):
            (folder / file).write_text("".join(texts), encoding="utf-8")
    elif form == "coco":
        text = json.dumps(coco_dict(images, names, sizes), indent=1)
        (folder / "annotations.json").write_text(text + "\n", encoding="utf-8")
    else:
        for image, name, (height, width) in zip(images, names, sizes, strict=True):
            label = (folder / "labels" / name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(yolo_rows(image, height, width), encoding="utf-8")


class _Layout(NamedTuple):
    """Where the parts of a data folder are.

    Attributes:
        images: The folder that names of images are relative to.
        readers: The function that reads each of the annotations, by the name of their file or folder.
    """

    images: Path
    readers: dict[str, Callable[[], list[ImageRecord]]]


def _layout(folder: Path) -> _Layout:
    if folder.suffix.lower() == ".json" and folder.is_file():
        above = folder.parent.parent if folder.parent.name == "annotations" else folder.parent
        images = above / "images" if (above / "images").is_dir() else above
        return _Layout(images, {folder.name: lambda: read_coco(folder, images)})
    coco = None if (folder / "bbx_gt.txt").exists() else annotation_file(folder)
    images = folder / "images"
    if not images.is_dir():
        if coco is None:
            raise DatasetError(f"{folder} must hold a folder `images`, {_what_is_there(folder)}")
        images = folder
    readers: dict[str, Callable[[], list[ImageRecord]]] = {}
    if (folder / "bbx_gt.txt").exists():
        readers["bbx_gt.txt"] = lambda: read_wider(folder)
    elif coco is not None:
        readers[coco.name] = lambda: read_coco(coco, images)
    if (folder / "labels").is_dir():
        readers["labels/"] = lambda: read_yolo(folder)
    return _Layout(images, readers)


def _what_is_there(folder: Path) -> str:
    """Says why a folder has no images; its parts may be data folders, as in exports with train/ and valid/."""
    parts = sorted(path.parent for path in folder.glob("*/images"))
    if parts:
        return f"and there is no {folder / 'images'}; give {' or '.join(map(str, parts))}"
    return f"and there is no {folder / 'images'}"


def _images(images: Path) -> list[Path]:
    return sorted(path for path in images.rglob("*") if is_picture(path.name))
