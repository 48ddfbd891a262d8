"""Data folders: annotated images for training and evaluation, in the formats of WIDER FACE, COCO or YOLO.

The format is detected from what lies beside `images/`: `bbx_gt.txt` (WIDER FACE), a JSON file with "images" and
"annotations" (COCO), `labels/` (YOLO), or nothing: the images have no faces.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pyface.data.coco import annotation_file, coco_dict, read_coco
from pyface.data.picture import DatasetError, Picture, picture_of, size_of
from pyface.data.wider import read_wider, wider_rows
from pyface.data.yolo import read_yolo, yolo_rows
from pyface.io.sources import IMAGE_SUFFIXES, is_picture

Format = Literal["wider", "coco", "yolo"]


def read_folder(folder: str | Path) -> list[Picture]:
    """Reads a data folder; images are not decoded.

    Raises:
        DatasetError: The folder has no `images/`, has annotations in two formats, or a file is missing or malformed.
    """
    folder = Path(folder)
    if not (folder / "images").is_dir():
        raise DatasetError(f"{folder} must hold a folder `images`, and there is no {folder / 'images'}")
    readers = _readers(folder)
    if len(readers) > 1:
        raise DatasetError(f"{folder} must have annotations in one format, got {' and '.join(readers)}; move one away")
    for read in readers.values():
        return read()
    files = _images(folder)
    if not files:
        raise DatasetError(f"{folder / 'images'} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return [picture_of(path, []) for path in files]


def annotations_in(folder: str | Path) -> list[str]:
    """The annotations in a data folder by name, such as `bbx_gt.txt`; none in a folder of images alone."""
    return list(_readers(Path(folder)))


def unlisted(folder: str | Path) -> list[str]:
    """The images in a data folder that its annotations do not name; none where an unnamed image has no faces."""
    folder = Path(folder)
    known = {picture.path for picture in read_folder(folder)}
    return [path.relative_to(folder / "images").as_posix() for path in _images(folder) if path not in known]


def write_folder(pictures: Sequence[Picture], names: Sequence[str], folder: Path, form: Format) -> None:
    """Writes a data folder: copies of the images, and their annotations.

    Args:
        pictures: The images and annotations.
        names: Each image's path within `images/`.
        folder: The folder; it must not exist.
        form: "wider", "coco", or "yolo", which has no ignore boxes.

    Raises:
        FileExistsError: The folder exists.
        DatasetError: An image cannot be read.
    """
    folder.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(size_of, (picture.path for picture in pictures)))
    for picture, name in zip(pictures, names, strict=True):
        target = folder / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture.path, target)
    if form == "wider":
        parts = [wider_rows(picture, name) for picture, name in zip(pictures, names, strict=True)]
        for file, texts in zip(("bbx_gt.txt", "landmarks.txt"), zip(*parts, strict=True), strict=True):
            (folder / file).write_text("".join(texts), encoding="utf-8")
    elif form == "coco":
        text = json.dumps(coco_dict(pictures, names, sizes), indent=1)
        (folder / "annotations.json").write_text(text + "\n", encoding="utf-8")
    else:
        for picture, name, (height, width) in zip(pictures, names, sizes, strict=True):
            label = (folder / "labels" / name).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(yolo_rows(picture, height, width), encoding="utf-8")


def _readers(folder: Path) -> dict[str, Callable[[], list[Picture]]]:
    """The reader of each of a folder's annotations, by name."""
    readers: dict[str, Callable[[], list[Picture]]] = {}
    if (folder / "bbx_gt.txt").exists():
        readers["bbx_gt.txt"] = lambda: read_wider(folder)
    elif (coco := annotation_file(folder)) is not None:
        readers[coco.name] = lambda: read_coco(coco, folder / "images")
    if (folder / "labels").is_dir():
        readers["labels/"] = lambda: read_yolo(folder)
    return readers


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "images").rglob("*") if is_picture(path.name))
