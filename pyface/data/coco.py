"""COCO's annotation format: one JSON file with "images", "annotations" and "categories" (cocodataset.org/#format-data).

`iscrowd` marks an ignore box, and five keypoints are a face's landmarks, in the order of `KEYPOINTS` unless the
category names another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyface.data.annotations import AnnotatedImage, Box, DatasetError, ImageRecord, is_coordinate
from pyface.data.names import ImageNames
from pyface.io.sources import is_picture

KEYPOINTS = ("left_eye", "right_eye", "nose", "left_mouth_corner", "right_mouth_corner")  # image-left first


def annotation_file(folder: Path) -> Path | None:
    """The COCO file of a data folder: the only JSON file with "images" and "annotations" in it or in `annotations/`.

    Raises:
        DatasetError: There are several.
    """
    files = sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    found = [path for path in files if _looks_like_coco(path)]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise DatasetError(f"{folder} must hold one COCO file, got {names}; give the path of the file instead")
    return found[0] if found else None


def read_coco(file: Path, images: Path) -> list[ImageRecord]:
    """Reads a COCO file; the images themselves are not opened.

    Args:
        file: The annotations.
        images: The folder that `file_name` is relative to. An image that is not there is searched for in the
            folders below, by the end of its name, since exports from other machines have other folders in front.

    Raises:
        DatasetError: The file is malformed, names an image that does not exist or that could be several files, or has
            several categories of which none is called "face".
    """
    content = _load(file)
    category = _face_category(file, content.get("categories") or [], content["annotations"])
    order = _keypoint_order(content.get("categories") or [], category)
    boxes: dict[object, list[Box]] = {}
    for entry in content["images"]:
        image = _id(file, entry, "id", "images")
        if image in boxes:
            raise DatasetError(f"{file}: every image must have an id of its own, got {image!r} twice")
        boxes[image] = []
    for entry in content["annotations"]:
        image = _id(file, entry, "image_id", "annotations")
        if image not in boxes:
            raise DatasetError(f"{file}: annotation {entry.get('id')} is for image {image!r}, which is not in `images`")
        if category is None or entry.get("category_id") == category:
            boxes[image].append(_box(file, entry, order))
    names = [str(_field(file, entry, "file_name", "images")) for entry in content["images"]]
    found: dict[Path, ImageRecord] = {}
    for entry, name, path in zip(content["images"], names, _find_images(file, images, names), strict=True):
        if path in found:
            raise DatasetError(f"{file} must list an image once, got {name} twice")
        within = path.relative_to(images).as_posix() if path.is_relative_to(images) else path.name
        found[path] = ImageRecord(path, within, boxes[entry["id"]], entry["id"])
    return list(found.values())


def _find_images(file: Path, images: Path, names: Sequence[str]) -> Iterator[Path]:
    """The paths of images; the folder is searched only if one is not where its name says."""
    below: ImageNames | None = None
    paths: list[Path] = []
    for name in names:
        path = Path(os.path.normpath(images / name))
        if os.path.isfile(path):  # unlike `Path.is_file`, False for names that no file system accepts
            yield path
            continue
        if below is None:
            paths = sorted(path for path in images.rglob("*") if is_picture(path.name))
            below = ImageNames(paths, [path.relative_to(images).as_posix() for path in paths])
        index = below.find(name)
        if index is None or Path(name).suffix.lower() != paths[index].suffix.lower():
            raise DatasetError(f"{file} names {name}, which is not in {images}")
        yield paths[index]


def coco_dict(
    annotated: Sequence[AnnotatedImage], names: Sequence[str], sizes: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The content of a COCO file.

    Args:
        annotated: The images and their annotations.
        names: Each image's `file_name`.
        sizes: Each image's height and width.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k, (image, name, (height, width)) in enumerate(zip(annotated, names, sizes, strict=True), 1):
        images.append({"id": k, "file_name": name, "width": width, "height": height})
        unknown = np.full((5, 2), np.nan, np.float32)
        rows = [(box, 0, points) for box, points in zip(image.faces, image.landmarks, strict=True)]
        rows += [(box, 1, unknown) for box in image.ignore]
        for box, crowd, points in rows:
            x1, y1, x2, y2 = map(float, box)
            known = np.isfinite(points).all(1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": k,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": crowd,
                    "num_keypoints": int(known.sum()),
                    "keypoints": [
                        value
                        for point, is_known in zip(points, known, strict=True)
                        for value in ((float(point[0]), float(point[1]), 2) if is_known else (0, 0, 0))
                    ],
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "face", "keypoints": list(KEYPOINTS), "skeleton": []}],
    }


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file} cannot be read as JSON ({error})") from error
    for name in ("images", "annotations"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DatasetError(f"{file}: `{name}` must be a list of objects, as in COCO's format")
    return dict(content)


def _looks_like_coco(path: Path) -> bool:
    """Whether the text has COCO's keys, so that a damaged file is not mistaken for a lack of annotations."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return False
    return '"images"' in text and '"annotations"' in text


def _face_category(file: Path, categories: Any, annotations: Sequence[Mapping[str, Any]]) -> object:
    """The id of the category "face"; None: all annotations are faces, since there is at most one category."""
    if not isinstance(categories, list):
        raise DatasetError(f"{file}: `categories` must be a list of objects, as in COCO's format")
    named = {str(entry.get("name", "")).lower(): entry.get("id") for entry in categories if isinstance(entry, dict)}
    if "face" in named:
        return named["face"]
    if len({json.dumps(entry.get("category_id")) for entry in annotations}) > 1:
        raise DatasetError(f'{file}: one of its categories must be called "face", got {", ".join(sorted(named))}')
    return None


def _keypoint_order(categories: Sequence[Mapping[str, Any]], category: object) -> list[int]:
    """Where each of `KEYPOINTS` is among the keypoints of the category; by default, in the same order."""
    of = [entry for entry in categories if isinstance(entry, dict) and category in (None, entry.get("id"))]
    names = of[0].get("keypoints") if len(of) == 1 else None
    if isinstance(names, list) and sorted(map(str, names)) == sorted(KEYPOINTS):
        return [names.index(name) for name in KEYPOINTS]
    return list(range(len(KEYPOINTS)))


def _field(file: Path, entry: Mapping[str, Any], name: str, of: str) -> Any:
    if name not in entry:
        raise DatasetError(f"{file}: every entry of `{of}` must have `{name}`, got {json.dumps(entry)[:200]}")
    return entry[name]


def _id(file: Path, entry: Mapping[str, Any], name: str, of: str) -> int | float | str:
    value = _field(file, entry, name, of)
    if not isinstance(value, int | float | str):
        raise DatasetError(f"{file}: `{name}` in `{of}` must be a number or text, got {json.dumps(value)[:200]}")
    return value


def _box(file: Path, entry: Mapping[str, Any], order: Sequence[int]) -> Box:
    box = _field(file, entry, "bbox", "annotations")
    if not _are_numbers(box) or len(box) != 4:
        raise DatasetError(f"{file}, annotation {entry.get('id')}: `bbox` must be four numbers, x y w h, got {box!r}")
    x, y, w, h = map(float, box)
    area = float(entry["area"]) if _are_numbers([entry.get("area")]) else None
    return Box((x, y, w, h), bool(entry.get("iscrowd", 0)), _landmarks(file, entry, order), area)


def _landmarks(file: Path, entry: Mapping[str, Any], order: Sequence[int]) -> NDArray[np.float32] | None:
    """An annotation's landmarks; None unless it has five keypoints, like pyface's faces."""
    values = entry.get("keypoints") or []
    if not _are_numbers(values):
        raise DatasetError(f"{file}, annotation {entry.get('id')}: `keypoints` must be numbers, got {values!r}")
    if len(values) != 15:
        return None
    points = np.array(values, np.float32).reshape(5, 3)[order]
    return np.where(points[:, 2:] > 0, points[:, :2], np.nan).astype(np.float32)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and is_coordinate(value) for value in values
    )
