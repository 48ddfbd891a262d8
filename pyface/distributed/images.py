"""Datasets of images: files, parquet files with their contents, or WebDataset tars, local or in object storage."""

from __future__ import annotations

import fnmatch
import glob
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from pyarrow import fs

from pyface.distributed.detection import IMAGES_PER_CALL
from pyface.io.sources import SourceError, find_sources, is_picture

SHARDS = (".parquet", ".tar")


@dataclass(frozen=True)
class ImageDataset:
    """A dataset with one row per image, and where `pyface.distributed.detect` finds what it needs.

    Attributes:
        dataset: The rows.
        image, source, filesystem: Arguments of `detect`.
    """

    dataset: ray.data.Dataset
    image: str
    source: str
    filesystem: fs.FileSystem | None = None


def read_images(
    sources: Sequence[str], *, recursive: bool = False, image: str = "bytes", source: str = "source"
) -> ImageDataset:
    """Reads images from files, folders, parquet files or WebDataset tars.

    Args:
        sources: Images and folders of them; or names or patterns that end with .parquet or .tar, one kind of the three.
            Each may be local or an address such as s3://bucket/photos, but all in the same place.
        recursive: Take the images in subfolders too.
        image: The column of parquet files with the contents of image files.
        source: The column of parquet files with their names.

    Raises:
        SourceError: The sources are of several kinds or in several places, or there is nothing to read.
    """
    kinds = {next((suffix for suffix in SHARDS if name.endswith(suffix)), "images") for name in sources}
    places = {_scheme(name) for name in sources}
    if len(kinds) > 1 or len(places) > 1:
        got = ", ".join(sorted(kinds if len(kinds) > 1 else (place or "local files" for place in places)))
        raise SourceError(f"sources must be of one kind and in one place, got {got}; run one command for each")
    kind, place = kinds.pop(), places.pop()
    if kind == "images" and not place:
        return local_images(find_sources(sources, recursive=recursive))
    filesystem, paths = (None, _local_shards(sources)) if not place else _stored_files(sources, recursive)
    if not paths:
        raise SourceError(f"{sources[0]}: no {'images' if kind == 'images' else kind + ' files'} match")
    if kind == "images":
        return image_files(paths, [f"{place}://{path}" for path in paths], filesystem)
    reader = _read_parquet if kind == ".parquet" else _read_tars
    return reader(paths, filesystem, image, source)


def local_images(names: Sequence[str]) -> ImageDataset:
    """The dataset of local files, which must lie at the same places on all machines."""
    return image_files([os.path.abspath(name) for name in names], names)  # actors run in other folders


def image_files(paths: Sequence[str], names: Sequence[str], filesystem: fs.FileSystem | None = None) -> ImageDataset:
    """The dataset of a list of files, which the actors read.

    Ray's own reader of files is not used, since a file that cannot be read would end the run instead of being an error
    in its row.

    Args:
        paths: Paths in the file system.
        names: What results call the files.
        filesystem: None: that of each machine.
    """
    try:
        table = pa.table({"path": pa.array(paths, pa.string()), "source": pa.array(names, pa.string())})
    except UnicodeEncodeError as error:
        raise SourceError(f"{error.object!r}: names must be UTF-8 with --ray; rename the file") from None
    blocks = [table.slice(first, IMAGES_PER_CALL) for first in range(0, len(table), IMAGES_PER_CALL)]
    return ImageDataset(ray.data.from_arrow(blocks), "path", "source", filesystem)


def _read_parquet(paths: list[str], filesystem: fs.FileSystem | None, image: str, source: str) -> ImageDataset:
    # Its new reader lists files in a task that needs a CPU, and waits for ever where the actors have taken all.
    ray.data.DataContext.get_current().use_datasource_v2 = False
    dataset = ray.data.read_parquet(paths, filesystem=filesystem, num_cpus=0)
    names = dataset.schema().names
    missing = [name for name in (image, source) if name not in names]
    if missing:
        raise SourceError(
            f"{paths[0]} must have the columns {image!r} and {source!r}, got {', '.join(names)}; "
            "choose with --image-column and --source-column"
        )
    return ImageDataset(dataset.select_columns([image, source]), image, source)


def _read_tars(paths: list[str], filesystem: fs.FileSystem | None, *_: str) -> ImageDataset:
    dataset = ray.data.read_webdataset(
        paths,
        filesystem=filesystem,
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


def _scheme(name: str) -> str:
    """The scheme of an address, "" for local files."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", name)
    return found[1] if found else ""


def _local_shards(sources: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(path for name in sources for path in sorted(glob.glob(name)) or [name]))


def _stored_files(sources: Sequence[str], recursive: bool) -> tuple[fs.FileSystem, list[str]]:
    """Returns the file system of addresses, and the paths in it of their images or of files that match a pattern."""
    paths: dict[str, None] = {}
    for address in sources:
        folder, name = posixpath.split(address) if address.endswith(SHARDS) else (address, "")
        try:
            filesystem, root = fs.FileSystem.from_uri(folder)
            info = filesystem.get_file_info(root)
            is_folder = info.type == fs.FileType.Directory
            files = filesystem.get_file_info(fs.FileSelector(root, recursive=recursive)) if is_folder else [info]
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(f"{address}: it cannot be listed ({error})") from None
        for file in files:
            is_wanted = fnmatch.fnmatchcase(file.base_name, name) if name else is_picture(file.base_name)
            if file.type == fs.FileType.File and is_wanted:
                paths[file.path] = None
    return filesystem, sorted(paths)
