"""A folder of results that many machines write and a later run continues."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from pyarrow import fs, parquet

from pyface.detections import Detections
from pyface.io.results import OutputError, check_maker, json_line

Format = Literal["parquet", "jsonl"]

ROWS_PER_FILE = 1000
MAKER = "_run.json"  # readers of Parquet folders leave out names that begin with _ or .

_FACE = pa.struct(
    {
        "box": pa.list_(pa.float32()),
        "score": pa.float32(),
        "landmarks": pa.list_(pa.list_(pa.float32())),
    }
)
COLUMNS = pa.schema(
    {
        "source": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "faces": pa.list_(_FACE),
        "error": pa.string(),
    }
)


def fingerprints(names: Sequence[str]) -> np.ndarray:
    """Returns a fingerprint of 16 bytes for each name; different names have different ones."""
    return np.array([hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names], dtype="S16")


def is_in(names: Sequence[str], known: np.ndarray) -> np.ndarray:
    """Returns for each name whether its fingerprint is among the sorted fingerprints `known`."""
    if not len(known):
        return np.zeros(len(names), bool)
    wanted = fingerprints(names)
    return known[np.searchsorted(known, wanted).clip(max=len(known) - 1)] == wanted


class Counts(NamedTuple):
    """Numbers of images, of those that could not be read, and of faces."""

    images: int = 0
    failed: int = 0
    faces: int = 0


class ResultFolder(ray.data.Datasink):
    """A folder to which Ray's tasks write results: Parquet or JSON Lines files, each with about a thousand rows.

    A file appears when it is complete. A task that is repeated writes the same file again, so no image has two rows.

    Args:
        path: The folder, local (shared by all machines) or a URL such as s3://bucket/results.
        form: "parquet" or "jsonl"; JSON Lines are those of `pyface detect`.
        resume: Continue the folder; `done` lists the images in it, without those that could not be read. The rows of
            the latter are removed when `save` begins, so that they are tried again.
        overwrite: Remove the results in the folder.
        made_by: What determines the results, such as model and options: JSON values by name. A run with other values
            cannot continue them. None: nothing is recorded or checked.
        rows_per_file: Smallest number of rows per file, except the last one.

    Attributes:
        done: Sorted fingerprints of the images that the folder held when it was opened, and that could be read.
        before: Their counts.
        written: The counts of this run, after `save`.

    Raises:
        OutputError: The folder has results and neither `resume` nor `overwrite` is given, other options made them, or
            the folder cannot be written.
    """

    def __init__(
        self,
        path: str,
        form: Format = "parquet",
        *,
        resume: bool = False,
        overwrite: bool = False,
        made_by: Mapping[str, Any] | None = None,
        rows_per_file: int = ROWS_PER_FILE,
    ) -> None:
        self.path, self.form = path, form
        self.filesystem: fs.FileSystem
        self.folder: str
        self.rows_per_file = rows_per_file
        self.run = uuid.uuid4().hex[:12]
        self.done, self.before, self.written = fingerprints([]), Counts(), Counts()
        self._with_failures: list[str] = []  # files with rows of images that could not be read
        try:
            self.filesystem, self.folder = fs.FileSystem.from_uri(path) if "://" in path else _local(path)
            self.filesystem.create_dir(self.folder)
            files = self._files()
            results = [file for file in files if not posixpath.basename(file).startswith((".", "_"))]
            if results and not (resume or overwrite):
                raise OutputError(f"{path} has results already; --resume continues them, --overwrite replaces them")
            for file in files if overwrite else set(files) - {*results, self._place(MAKER)}:
                self.filesystem.delete_file(file)  # names of unfinished files begin with a dot
            if results and not overwrite:
                self._check(made_by)
                self._continue(results)
            if made_by is not None:
                self._put(MAKER, (json.dumps(dict(made_by), indent=1) + "\n").encode())
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None

    @property
    def min_rows_per_write(self) -> int:
        """The smallest number of rows that Ray gives to a task."""
        return self.rows_per_file

    def save(self, results: ray.data.Dataset) -> Counts:
        """Writes a dataset of results, as `detect` returns it; returns the counts of this run."""
        self._remove_failures()
        # Writing takes little time, but each process that writes takes the memory of one that has loaded torch.
        results.write_datasink(self, ray_remote_args={"num_cpus": 0}, concurrency=len(ray.nodes()))
        return self.written

    def write(self, blocks: Iterable[Any], ctx: Any) -> Counts:
        """Writes the results of one of Ray's tasks; a task that runs again replaces its own file."""
        tables = [ray.data.block.BlockAccessor.for_block(block).to_arrow() for block in blocks]
        rows = pa.concat_tables(
            [table.select(COLUMNS.names).cast(COLUMNS) for table in tables if len(table)] or [EMPTY]
        )
        if len(rows):
            self._put(f"{self.run}-{ctx.task_idx:08}.{self.form}", ENCODERS[self.form](rows))
        return count(rows)

    def on_write_complete(self, write_result: ray.data.datasource.WriteResult[Counts]) -> None:
        """Sums up what the tasks have written."""
        self.written = add(write_result.write_returns)

    def _check(self, made_by: Mapping[str, Any] | None) -> None:
        file = self._place(MAKER)
        if made_by is not None and self.filesystem.get_file_info(file).type == fs.FileType.File:
            check_maker(self.filesystem.open_input_stream(file).read(), made_by, self.path, MAKER)

    def _continue(self, files: list[str]) -> None:
        names: list[np.ndarray] = []
        counts: list[Counts] = []
        for file in files:
            rows = self._read(file)
            read = rows.filter(rows["error"].is_null())
            self._with_failures += [file] if len(read) < len(rows) else []
            names.append(fingerprints(read["source"].to_pylist()))
            counts.append(count(read))
        self.done, self.before = np.sort(np.concatenate(names)), add(counts)

    def _read(self, file: str) -> pa.Table:
        with self.filesystem.open_input_file(file) as stream:
            return DECODERS[_form_of(file)](stream)

    def _remove_failures(self) -> None:
        """Removes the rows of images that could not be read in an earlier run, since they are tried again."""
        for file in self._with_failures:
            rows = self._read(file)
            read = rows.filter(rows["error"].is_null())
            if len(read):
                self._put(posixpath.basename(file), ENCODERS[_form_of(file)](read))
            else:
                self.filesystem.delete_file(file)
        self._with_failures = []

    def _files(self) -> list[str]:
        """The files of earlier runs: results, the record of their options, and unfinished files."""
        listed = self.filesystem.get_file_info(fs.FileSelector(self.folder))
        ours = (".parquet", ".jsonl", ".part")
        return sorted(file.path for file in listed if file.path.endswith(ours) or file.base_name == MAKER)

    def _place(self, name: str) -> str:
        return posixpath.join(self.folder, name)

    def _put(self, name: str, content: bytes) -> None:
        """Writes a file that appears only when it is complete, as files in object stores do anyway."""
        part = self._place(f".{name}.{uuid.uuid4().hex[:8]}.part")
        is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        place = part if is_local else self._place(name)
        with self.filesystem.open_output_stream(place) as file:
            file.write(content)
        if is_local:
            self.filesystem.move(part, self._place(name))


EMPTY = COLUMNS.empty_table()


def _form_of(file: str) -> str:
    return posixpath.splitext(file)[1][1:]


def _local(path: str) -> tuple[fs.FileSystem, str]:
    return fs.LocalFileSystem(), os.path.abspath(path)  # tasks run in other folders


def count(rows: pa.Table) -> Counts:
    """Counts the images and faces of results."""
    failed = len(rows) - rows["error"].null_count
    faces = sum(len(faces) for faces in rows["faces"].to_pylist())
    return Counts(len(rows), failed, faces)


def add(counts: Iterable[Counts]) -> Counts:
    """Adds counts up.

    Example:
        >>> add([Counts(2, 1, 3), Counts(1, 0, 1)])
        Counts(images=3, failed=1, faces=4)
    """
    return Counts(*(sum(numbers) for numbers in zip(Counts(), *counts, strict=True)))


def encode_parquet(rows: pa.Table) -> bytes:
    """Returns the rows as a Parquet file."""
    sink = pa.BufferOutputStream()
    parquet.write_table(rows, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def encode_lines(rows: pa.Table) -> bytes:
    """Returns the rows as lines of JSON, those of `pyface detect`."""
    return b"".join(json_line(_shortest(row)) for row in rows.to_pylist())


def _shortest(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the shortest decimal numbers that convert back to the same float32."""
    return row if row["error"] is not None else Detections.from_dict(row).to_dict()


def decode_lines(stream: Iterable[bytes]) -> pa.Table:
    """Reads what `encode_lines` wrote."""
    return pa.Table.from_pylist([json.loads(line) for line in _lines(stream)], schema=COLUMNS)


def _lines(stream: Any) -> Iterator[bytes]:
    return iter(stream.read().splitlines())


ENCODERS = {"parquet": encode_parquet, "jsonl": encode_lines}
DECODERS = {"parquet": lambda stream: parquet.read_table(stream, columns=COLUMNS.names), "jsonl": decode_lines}
