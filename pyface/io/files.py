"""Writing files on disks that may be full: everything is written, or an error names the file."""

from io import RawIOBase
from pathlib import Path


def write_all(file: RawIOBase, data: bytes) -> None:
    """Writes all bytes to an unbuffered file, which may take fewer at once."""
    while data:
        data = data[file.write(data) or 0 :]


def write_whole(path: Path, data: bytes) -> None:
    """Writes a whole file, or leaves none if that fails. Missing folders are created.

    Raises:
        OSError: It cannot be written; `filename` is its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        try:
            write_all(file, data)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None
