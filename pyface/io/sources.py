"""Which pictures a command line means, and where their drawn copies go."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".pbm", ".pgm", ".ppm", ".pnm"),
)
"""Which files in a folder count as images. A file that is named itself is read whatever its suffix."""

ADDRESS = "pyface reads files, not addresses: download it first"


class SourceError(ValueError):
    """The pictures cannot be found, or their copies would go where they must not; the text says why."""


def find_sources(arguments: Iterable[str], *, recursive: bool = False, skip: Path | None = None) -> list[str]:
    """Finds the pictures that files, folders and patterns stand for.

    A folder stands for the pictures in it, hidden ones excepted, in the order of their names; a pattern for what a
    shell would make of it, so it works in quotes and where shells expand nothing. A file that is not there is passed
    on where others are named too, so that whoever reads them all reports it and goes on.

    Args:
        arguments: Files, folders, and patterns with `*`, `?`, `[...]` or `**`.
        recursive: Look into the subfolders of folders too.
        skip: A folder whose content is left out where it lies within another, such as the one for drawn copies.

    Returns:
        The paths, spelled as the arguments were, each picture once.

    Raises:
        SourceError: A folder or pattern stands for no picture, a folder cannot be read, or the only argument is not
            there.
    """
    found: dict[str, str] = {}
    arguments = list(arguments)
    if len(arguments) == 1 and not _is_pattern(arguments[0]) and not os.path.exists(arguments[0]):
        reason = ADDRESS if is_address(arguments[0]) else "there is no such file or folder"
        raise SourceError(f"{arguments[0]}: {reason}")
    for argument in arguments:
        matches = sorted(glob.glob(argument, recursive=True)) if _is_pattern(argument) else [argument]
        count = 0
        for match in matches:
            for path in _pictures(match, recursive, skip) if os.path.isdir(match) else [match]:
                found.setdefault(os.path.normpath(path), path)
                count += 1
        if count == 0:
            raise SourceError(_nothing(argument, recursive))
    return list(found.values())


def is_address(name: str) -> bool:
    """Tells whether a name is an address on the web."""
    return name.lower().startswith(("http://", "https://", "ftp://"))


def _is_pattern(argument: str) -> bool:
    # "photo [1].jpg" may be a file, and addresses have question marks.
    return glob.has_magic(argument) and not os.path.exists(argument) and not is_address(argument)


def _nothing(argument: str, recursive: bool) -> str:
    if not os.path.isdir(argument):
        return f"{argument}: nothing fits this pattern"
    hint = "" if recursive else ", --recursive looks into its subfolders too"
    return f"{argument}: there are no pictures in this folder{hint}"


def _pictures(folder: str, recursive: bool, skip: Path | None) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: the folder cannot be read ({error.strerror})")

    skipped = None if skip is None else os.path.realpath(skip)
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name
            for name in (folders if recursive else [])
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) != skipped
        )
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield os.path.join(root, name)


def plan_copies(sources: Iterable[str], folder: Path) -> dict[str, Path]:
    """Chooses where the drawn copy of each picture goes: its path below the folder that all pictures share.

    JPEG and PNG pictures keep their name; others become PNG and have `.png` added to it.

    Raises:
        SourceError: A copy would overwrite one of the pictures.

    Example:
        >>> plan = plan_copies(["a/face.jpg", "b/face.jpg", "b/scan.tif"], Path("out"))
        >>> [path.as_posix() for path in plan.values()]
        ['out/a/face.jpg', 'out/b/face.jpg', 'out/b/scan.tif.png']
    """
    full = {source: os.path.abspath(source) for source in sources}
    try:
        shared = os.path.commonpath([os.path.dirname(path) for path in full.values()])
    except ValueError:  # several drives
        shared = ""
    pictures = {os.path.realpath(path) for path in full.values()}
    plan: dict[str, Path] = {}
    taken: set[str] = set()
    for source, path in full.items():
        below = os.path.relpath(path, shared) if shared else path.replace(":", "").lstrip("/\\")
        copy = _free(folder / _copy_name(below), taken)
        if os.path.realpath(copy) in pictures:
            raise SourceError(f"{folder}: saving there would overwrite the picture {source}, choose another folder")
        plan[source] = copy
    return plan


def _copy_name(name: str) -> str:
    return name if name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{name}.png"


def _free(path: Path, taken: set[str]) -> Path:
    """Numbers a name until no other picture has it, by the rules of file systems that ignore case."""
    choice, number = path, 2
    while str(choice).lower() in taken:
        choice, number = path.with_stem(f"{path.stem} ({number})"), number + 1
    taken.add(str(choice).lower())
    return choice
