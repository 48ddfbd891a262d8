"""Datasets of images: files, Parquet files with their contents, or WebDataset tars, local or in object storage."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from pyface.distributed.detection import IMAGES_PER_CALL
from pyface.io.sources import Source, SourceError, find_sources, is_address, is_archive, is_picture, is_video

SHARDS = (".parquet", ".tar")


@dataclass(frozen=True)
class ImageDataset:
    """A dataset with one row per image, and the columns that `pyface.distributed.detect` reads.

    Attributes:
        dataset: The rows.
        image, source: Arguments of `detect`.
    """

    dataset: ray.data.Dataset
    image: str
    source: str


def read_images(
    sources: Sequence[str], *, recursive: bool = False, image: str = "bytes", source: str = "source"
) -> ImageDataset:
    """Reads images from files, folders, Parquet files or WebDataset tars.

    Args:
        sources: Images and folders of images, .parquet files, or .tar files, as names, patterns, or URLs such as
            s3://bucket/photos.
        recursive: Take the images in subfolders too.
        image, source: See `image_dataset`.

    Raises:
        SourceError: As for `image_dataset`, or there is nothing to read.
    """
    return image_dataset(find_sources(sources, recursive=recursive), image=image, source=source)


def image_dataset(names: Sequence[Source], *, image: str = "bytes", source: str = "source") -> ImageDataset:
    """The dataset of a list of files: images, .parquet files or .tar files.

    Args:
        names: Local files, which must have the same paths on all machines, or URLs.
        image: The column of Parquet files with the contents of image files.
        source: The column of Parquet files with their names.

    Raises:
        SourceError: The files are of several kinds, a Parquet file lacks the columns, or a file is a video or
            another kind of archive.
    """
    paths = [name for name in names if isinstance(name, str)]
    kinds = {next((suffix for suffix in SHARDS if path.endswith(suffix)), "images") for path in paths}
    if len(kinds) > 1:
        raise SourceError(f"sources must be of one kind, got {', '.join(sorted(kinds))}; run one command for each")
    if ".parquet" in kinds:
        return _read_parquet(paths, image, source)
    if ".tar" in kinds:
        return _read_tars(paths)
    other = next((path for path in paths if is_video(path) or is_archive(path)), None)
    if other is not None:
        raise SourceError(f"{other}: sources must be images, .parquet or .tar files on a cluster; leave others out")
    return _image_files(paths)


def _image_files(names: Sequence[str]) -> ImageDataset:
    """The dataset of image files, which the actors read.

    Ray's own reader of files is not used, since a file that cannot be read would end the run instead of being an error
    in its row.
    """
    # Actors run in other folders.
    paths = [name if is_address(name) else os.path.abspath(name) for name in names]
    try:
        table = pa.table({"path": pa.array(paths, pa.string()), "source": pa.array(names, pa.string())})
    except UnicodeEncodeError as error:
        raise SourceError(f"{error.object!r}: names must be UTF-8 with --ray; rename the file") from None
    blocks = [table.slice(first, IMAGES_PER_CALL) for first in range(0, len(table), IMAGES_PER_CALL)]
    return ImageDataset(ray.data.from_arrow(blocks), "path", "source")


def _read_parquet(paths: list[str], image: str, source: str) -> ImageDataset:
    # Ray's new reader lists files in a task that needs a CPU, and waits for ever if the actors have taken them all.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    dataset = ray.data.read_parquet(paths, num_cpus=0)
    names = dataset.schema().names
    missing = [name for name in (image, source) if name not in names]
    if missing:
        raise SourceError(
            f"{paths[0]} must have the columns {image!r} and {source!r}, got {', '.join(names)}; "
            "choose with --image-column and --source-column"
        )
    return ImageDataset(dataset.select_columns([image, source]), image, source)


def _read_tars(paths: list[str]) -> ImageDataset:
    dataset = ray.data.read_webdataset(
        paths,
        filerename=_member_alone,
        fileselect=lambda name: is_picture(posixpath.basename(_member(name))),
        decoder=_named_member,
        num_cpus=0,
    )
    return ImageDataset(dataset, "bytes", "source")


# WebDataset groups a tar's members by their names up to the first dot, and would make one row of several images.


def _member_alone(name: str) -> str:
    return name.replace(".", "\0") + ".bytes"


def _member(name: str) -> str:
    return name.removesuffix(".bytes").replace("\0", ".")


def _named_member(sample: dict[str, Any]) -> dict[str, Any]:
    return {"source": f"{sample['__url__']}/{_member(sample['__key__'])}", "bytes": sample["bytes"]}
