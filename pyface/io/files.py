"""Writing whole files, with errors that name the file, and folders in which files may be replaced."""

from io import RawIOBase
from pathlib import Path


def write_all(file: RawIOBase, data: bytes) -> None:
    """Writes all bytes to an unbuffered file, which may take fewer at once."""
    while data:
        data = data[file.write(data) or 0 :]


OWNED = ".pyface"
"""The hidden file in folders that pyface made."""


def own_folder(folder: Path) -> bool:
    """Makes a folder for files that later runs may replace, and returns whether they may.

    A new or empty folder becomes one, with a hidden file that says so. In any other folder a file may be the only one
    of its kind.

    Raises:
        OSError: The folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / OWNED
    if not mark.exists() and all(path.name.startswith(".") for path in folder.iterdir()):
        mark.write_text("pyface made this folder, and may replace the files in it.\n", encoding="utf-8")
    return mark.exists()


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
