"""Reading text files of predictions from folders and tar archives."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path


class EvaluationError(ValueError):
    """Predictions or ground truth cannot be read; the message names the file and the reason."""


def check_new_folder(folder: Path) -> None:
    """Refuses a folder in which predictions would mix with other files.

    Raises:
        EvaluationError: It is a file, or is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise EvaluationError(f"{folder} must be a folder to write predictions to, got a file")
    if folder.exists() and any(folder.iterdir()):
        raise EvaluationError(f"{folder} must be an empty or new folder, got one with files in it")


def text_files(source: Path, suffix: str = ".txt") -> Iterator[tuple[str, str]]:
    """Yields name and content of all text files in a folder or tar archive, or of a single file.

    Hidden files are skipped: archives made on a Mac hold a `._name.txt` for each file.

    Raises:
        EvaluationError: The source is none of these, or a file is not UTF-8 text.
    """
    if source.is_dir():
        for path in sorted(source.rglob(f"*{suffix}")):
            if not path.name.startswith("."):
                yield str(path), _read(path)
        return
    if source.is_file() and source.name.endswith(suffix):
        yield str(source), _read(source)
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                is_wanted = member.isfile() and name.endswith(suffix) and not name.startswith(".")
                file = archive.extractfile(member) if is_wanted else None
                if file is not None:
                    yield f"{source}/{member.name}", _decode(file.read(), f"{source}/{member.name}")
    except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        # tarfile's own message has a line for each compression that it tried.
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else "it is not, or is damaged"
        raise EvaluationError(f"{source} must be a folder or a tar archive of {suffix} files: {reason}") from error


def _read(path: Path) -> str:
    try:
        return _decode(path.read_bytes(), str(path))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")  # editors on Windows add a byte order mark
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{name} must be UTF-8 text, got other bytes ({error.reason} at byte {error.start})"
        ) from None
