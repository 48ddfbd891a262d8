"""Result files: one JSON line per image or frame, or a table with one row per face, as CSV or Parquet.

A later run can continue JSON Lines and CSV files.

A result is a dictionary as `Detections.to_dict` makes it; that of an unreadable image has an error instead of faces. An
image that was read, but whose copy could not be written, has both.
The result of a video's frame has its number and time too. A video that cannot be read or breaks off has a result
without a frame number.
"""

import csv
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from pyface.io.files import write_all, write_whole

CSV_COLUMNS = [
    *("source", "frame", "time", "width", "height", "faces", "face", "id", "crop", "x1", "y1", "x2", "y2", "score"),
    *(f"{part}_{axis}" for part in ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth") for axis in "xy"),
    "error",
]
"""`faces` counts the faces of the image, `face` numbers them from 0; an image without faces has one row too. `frame`
and `time` are those of a video, `id` is that of a track. Left and right are those of the image."""

_FACES = CSV_COLUMNS.index("faces")


class OutputError(ValueError):
    """A result file cannot be written or continued; the text says why and what to do."""


def failed(source: str, error: str) -> dict[str, Any]:
    """Returns the result of an image or video that could not be read."""
    return {"source": source, "width": None, "height": None, "faces": [], "error": error}


def was_read(result: Mapping[str, Any]) -> bool:
    """Whether an image was read; its result can still have an error, if its copy could not be saved."""
    return result.get("error") in (None, "") or result.get("width") not in (None, "")


def of_frame(result: dict[str, Any], source: str, frame: int, time: float) -> dict[str, Any]:
    """Returns the result of a frame: that of the image, with the video, the frame's number and its time in seconds."""
    return {"source": source, "frame": frame, "time": round(time, 6)} | {
        k: v for k, v in result.items() if k != "source"
    }


def json_line(result: dict[str, Any]) -> bytes:
    """Returns the result as a line of JSON in ASCII, so that names in any alphabet survive any terminal or pipe."""
    return json.dumps(result, allow_nan=False).encode("ascii") + b"\n"


def csv_rows(result: dict[str, Any]) -> bytes:
    """Returns the result as rows of CSV."""
    return _csv(table_rows(result))


def table_rows(result: dict[str, Any]) -> list[list[Any]]:
    """Returns the result as rows with `CSV_COLUMNS`: one per face, or a single one for an image without faces."""
    image = [result.get(name) for name in CSV_COLUMNS[:_FACES]] + [len(result["faces"])]
    faces = [
        [number, face.get("id"), face.get("crop"), *face["box"], face["score"], *_flat_landmarks(face)]
        for number, face in enumerate(result["faces"])
    ]
    nothing = [None] * (len(CSV_COLUMNS) - len(image) - 1)
    return [[*image, *face, result["error"]] for face in faces or [nothing]]


def _flat_landmarks(face: dict[str, Any]) -> list[float | None]:
    return [None] * 10 if face["landmarks"] is None else [value for point in face["landmarks"] for value in point]


def _csv(rows: list[list[Any]]) -> bytes:
    lines = []
    for row in rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerow(row)  # before Python 3.13, only these line breaks are quoted
        lines.append(text.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines).encode("utf-8", "surrogateescape")  # a name need not be valid text on Linux


class ResultFile:
    """A growing result file that is complete up to the last result, whenever the program ends.

    Args:
        path: Where to write. Missing folders are created.
        as_csv: Write CSV instead of JSON Lines. None: as the suffix says, .jsonl or .csv.
        resume: Continue the file: remove a half-written result at its end, and list in `done` what it contains.
        overwrite: Replace the file.
        whole_videos: Remove a video whose last frame ends the file, so that it is processed again from its beginning.
        made_by: What determines the results, such as model and options: JSON values by name. FILE.run.json beside the
            results records it, and a run with other values cannot continue them. None: nothing is recorded or checked.

    Attributes:
        is_unchecked: Whether the file is continued without FILE.run.json, so what made it is unknown.
        done: The sources that the file held when it was opened, and whether each had failed.
        failed: Those of which it held nothing but that they could not be read, and where these results begin and end.
        begun: A video that may be unfinished, since its last frame ends the file, and the number of that frame.

    Raises:
        OutputError: The suffix is unknown, or the file cannot be written. It has content, and neither `resume` nor
            `overwrite` is given. It is to be continued, but is not a result file or was made with other options.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "faces.jsonl"
        >>> with ResultFile(path) as file:
        ...     file.write(failed("a.jpg", "there is no such file"))
        >>> with ResultFile(path, resume=True) as file:
        ...     file.done
        {'a.jpg': True}
    """

    def __init__(
        self,
        path: Path,
        *,
        as_csv: bool | None = None,
        resume: bool = False,
        overwrite: bool = False,
        whole_videos: bool = False,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        self.done: dict[str, bool] = {}
        self.failed: dict[str, tuple[int, int]] = {}
        self.begun: tuple[str, int] | None = None
        self._replacement: _Replacement | None = None
        self.is_unchecked = False
        if as_csv is None and path.suffix.lower() not in (".jsonl", ".csv"):
            raise OutputError(f"{path}: a file of results must end with .jsonl or .csv")
        is_csv = path.suffix.lower() == ".csv" if as_csv is None else as_csv
        self._encode = csv_rows if is_csv else json_line
        try:
            if path.exists() and path.stat().st_size > 0 and not overwrite:
                if not resume:
                    raise OutputError(f"{path} already exists; --resume continues it, --overwrite replaces it")
                if made_by is not None:
                    self.is_unchecked = not _check_maker(path, made_by)
                self._continue(path, whole_videos)
            path.parent.mkdir(parents=True, exist_ok=True)
            if made_by is not None:
                _write_maker(path, made_by)
            # Unbuffered: what is written has left this process, so killing it loses nothing.
            self._file = open(path, "wb" if overwrite else "ab", buffering=0)  # noqa: SIM115
            self._path, self._has_links = path, os.fstat(self._file.fileno()).st_nlink > 0  # not on every file system
            if self._encode is csv_rows and path.stat().st_size == 0:
                write_all(self._file, _csv([list(CSV_COLUMNS)]))
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._end_retry(is_interrupted=kind is not None)
        except OSError as error:
            if kind is None:  # else the run ends with another error, which matters more
                raise OutputError(f"{self._path} cannot be written: {error.strerror or error}") from None
        finally:
            self._file.close()

    def retry(self, names: Mapping[str, str]) -> None:
        """Tells that some of the sources in `failed` are tried again.

        The next results are theirs, in this order, and take the places of the failed ones. They are written to a copy
        of the file, FILE.part, which replaces it once the first result of another source follows, or on leaving the
        context. Until then the file stays as it is.

        Args:
            names: The sources' names in the coming results, by their names in the file. Those in an archive begin with
                its name and a slash.

        Raises:
            OutputError: The copy cannot be written.
        """
        if not names:
            return
        try:
            self._replacement = _Replacement(self._path, [(new, *self.failed[name]) for name, new in names.items()])
        except OSError as error:
            raise OutputError(f"{error.filename} cannot be written: {error.strerror or error}") from None

    def _end_retry(self, *, is_interrupted: bool = False) -> None:
        replacement, self._replacement = self._replacement, None
        if replacement is not None:
            replacement.finish(is_interrupted=is_interrupted)
            self._file.close()
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115

    def write(self, result: dict[str, Any]) -> None:
        """Appends one result, or puts it in the place of a failed one.

        Raises:
            OSError: It cannot be written, for example because the disk is full or the file was deleted; `filename`
                is its name.
        """
        try:
            if self._replacement is not None:
                if self._replacement.write(result["source"], self._encode(result)):
                    return
                self._end_retry()
            write_all(self._file, self._encode(result))
            if self._has_links and os.fstat(self._file.fileno()).st_nlink == 0:
                raise OSError(errno.ENOENT, "the file was deleted during the run")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _continue(self, path: Path, whole_videos: bool) -> None:
        """Fills `done` and `begun`, and cuts the file after the last whole result or video."""
        whole = start = 0  # ends of the last result, and of the last one before the video that it belongs to
        for end, result in (_json_results if self._encode is json_line else _csv_results)(path):
            if result is not None:
                source, frame = result.source, result.frame
                start = whole if self.begun is None or self.begun[0] != source else start
                self.begun = None if frame is None else (source, frame)
                if frame is None and not result.was_read and source not in self.done:
                    self.failed[source] = whole, end
                self.done[source] = result.has_failed or self.done.get(source, False)
            whole = end
        if self.begun is not None:
            del self.done[self.begun[0]]
            if whole_videos:
                whole, self.begun = start, None
        if whole < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)


class _Replacement:
    """A copy of a file of results in which new results take the places of some; it replaces the file when complete.

    Args:
        path: The file.
        places: For each source that is tried again, its name in the new results, and where its result begins and ends;
            in the file's order.
    """

    def __init__(self, path: Path, places: Sequence[tuple[str, int, int]]) -> None:
        self._path = path.resolve()
        self._part = self._path.with_name(f"{path.name}.part")
        self._places = list(reversed(places))
        self._name: str | None = None  # of the source whose results are being written
        self._begin = self._start = 0  # where its results begin, in the file and in the copy
        self._old = self._path.open("rb")
        self._new = self._part.open("wb", buffering=0)

    def write(self, source: str, data: bytes) -> bool:
        """Writes a result to its place; returns False if it has none, since all places are filled or passed."""
        while self._name is None or not _is_of(source, self._name):
            if not self._places:
                return False
            name, begin, end = self._places.pop()
            if _is_of(source, name):
                self._copy_until(begin)
                self._old.seek(end)
                self._name, self._begin, self._start = name, begin, self._new.tell()
        write_all(self._new, data)
        return True

    def finish(self, *, is_interrupted: bool) -> None:
        """Copies the rest, and replaces the file; of the source that was interrupted, the failed result stays.

        Raises:
            OSError: The copy cannot be written. The file then stays as it was.
        """
        try:
            with self._old, self._new:
                if is_interrupted and self._name is not None:
                    self._new.truncate(self._start)
                    self._new.seek(self._start)
                    self._old.seek(self._begin)
                self._copy_until(None)
                os.fsync(self._new.fileno())  # otherwise a power cut may leave an empty file under the final name
            shutil.copymode(self._path, self._part)
            self._part.replace(self._path)
        except OSError:
            self._part.unlink(missing_ok=True)
            raise

    def _copy_until(self, end: int | None) -> None:
        while data := self._old.read(_COPIED_AT_ONCE if end is None else min(_COPIED_AT_ONCE, end - self._old.tell())):
            write_all(self._new, data)


def _is_of(source: str, name: str) -> bool:
    """Whether a result's source is this one, or in this archive."""
    return source == name or source.startswith(f"{name}/")


_COPIED_AT_ONCE = 2**20  # bytes


class FinishedFile:
    """A result file that is complete only when the run ends, so no later run can continue it.

    Until then the results are beside it, in FILE.part. Subclasses write to `part` and complete it in `finish`.

    Args:
        path: Where to write. Missing folders are created.
        overwrite: Replace the file.

    Raises:
        OutputError: The file exists and `overwrite` is not given, or it cannot be written.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path, self.part = path, path.with_name(f"{path.name}.part")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} already exists; --overwrite replaces it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.part.touch()
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        self.part.replace(self.path)

    def write(self, result: dict[str, Any]) -> None:
        """Adds one result.

        Raises:
            OSError: It cannot be written, for example because the disk is full.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Completes `part`."""
        raise NotImplementedError


_ROWS_AT_ONCE = 2**14  # of a Parquet file, written at once; a row takes about 300 bytes in memory


class ParquetFile(FinishedFile):
    """A Parquet file with the columns of CSV files; pyarrow writes it (the extra `parquet`).

    Raises:
        OutputError: As for `FinishedFile`, or pyarrow is not installed.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise OutputError('Parquet files need pyarrow: pip install "pyface-engine[parquet]"') from None
        super().__init__(path, overwrite=overwrite)
        kinds = {"source": pyarrow.string(), "crop": pyarrow.string(), "error": pyarrow.string()}
        kinds |= dict.fromkeys(("frame", "width", "height", "faces", "face", "id"), pyarrow.int64())
        kinds |= {"time": pyarrow.float64()}
        self._schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float32())) for name in CSV_COLUMNS])
        self._table = pyarrow.Table
        self._rows: list[dict[str, Any]] = []
        self._writer = pyarrow.parquet.ParquetWriter(self.part, self._schema)

    def write(self, result: dict[str, Any]) -> None:
        self._rows += [
            {
                name: _text(value) if isinstance(value, str) else value
                for name, value in zip(CSV_COLUMNS, row, strict=True)
            }
            for row in table_rows(result)
        ]
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


def _text(name: str) -> str:
    """Returns a name in which invalid characters are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _maker_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.run.json")


def _write_maker(path: Path, made_by: Mapping[str, Any]) -> None:
    beside = path.with_name(f"{path.name}.run.json.part")
    write_whole(beside, (json.dumps(dict(made_by), indent=1) + "\n").encode())
    beside.replace(_maker_file(path))


def _check_maker(path: Path, made_by: Mapping[str, Any]) -> bool:
    """Refuses to continue a file that other options or another model made; returns False if they are unknown."""
    file = _maker_file(path)
    if file.exists():
        check_maker(file.read_bytes(), made_by, str(path), str(file))
    return file.exists()


def check_maker(content: bytes, made_by: Mapping[str, Any], path: str, file: str) -> None:
    """Refuses to continue results that other options or another model made.

    Args:
        content: The content of the file that records what made them.
        made_by: What determines the results in the run that is to continue them.
        path: The results.
        file: The name of the file.

    Raises:
        OutputError: The two differ, or the content is damaged.
    """
    try:
        before = json.loads(content)
        known = [name for name in made_by if name in before]  # an older pyface has fewer options
        changed = [name for name in known if before[name] != json.loads(json.dumps(made_by[name]))]
    except (ValueError, KeyError, TypeError, RecursionError):
        name = file.rpartition("/")[2]
        raise OutputError(
            f"{file} is damaged or was not written by pyface; --overwrite replaces {path} and {name}"
        ) from None
    if changed:
        then, now = (", ".join(f"{name} {_shown(of[name])}" for name in changed) for of in (before, made_by))
        raise OutputError(
            f"{path} was made with {then}, this command has {now}; repeat the first command's options, or give another "
            f"--output"
        )


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class _Facts(NamedTuple):
    """What a file says of a source: the number of the frame, whether there is an error, and whether faces are known."""

    source: str
    frame: int | None
    has_failed: bool
    was_read: bool


def _json_results(path: Path) -> Iterator[tuple[int, _Facts]]:
    """Yields where every whole result ends, and its facts."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                result = json.loads(line)
                has_failed = result["error"] is not None
                facts = _Facts(result["source"], result.get("frame"), has_failed, was_read(result))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise _foreign(path, number) from None
            if not isinstance(facts.source, str):
                raise _foreign(path, number)
            yield end, facts


def _csv_results(path: Path) -> Iterator[tuple[int, _Facts | None]]:
    """Yields where the header and every whole result end, and the facts of the results."""
    rows_left = 0
    for number, (end, row) in enumerate(_csv_records(path), 1):  # a row that is not CSV has no fields
        if number == 1 and row == CSV_COLUMNS:
            yield end, None
            continue
        if number == 1 or len(row) != len(CSV_COLUMNS) or re.fullmatch("[0-9]{1,9}", row[_FACES]) is None:
            raise _foreign(path, number)
        rows_left = (rows_left or max(1, int(row[_FACES]))) - 1
        if rows_left == 0:
            frame = int(row[1]) if row[1].isdecimal() else None
            yield end, _Facts(row[0], frame, row[-1] != "", was_read(dict(zip(CSV_COLUMNS, row, strict=True))))


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the end and the fields of every complete row; a quoted name may contain line breaks."""
    end, record = 0, b""
    with path.open("rb") as file:
        for line in file:
            record += line
            if record.endswith(b"\n") and record.count(b'"') % 2 == 0:
                end += len(record)
                text = record.decode("utf-8", "surrogateescape").removeprefix("\ufeff")  # Excel's byte order mark
                try:
                    row = next(csv.reader(io.StringIO(text, newline="")))
                except csv.Error:
                    row = []
                yield end, row
                record = b""


def _foreign(path: Path, line: int) -> OutputError:
    return OutputError(
        f"{path}: line {line} was not written by pyface; --resume continues only what pyface detect has written"
    )
