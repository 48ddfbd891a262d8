"""Which images a command line means, and where their drawn copies go."""

import glob
import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm"),
)
"""Which files in a folder count as images. A file that is named itself is read whatever its suffix."""

HEIC_SUFFIXES = (".heic", ".heif", ".heics", ".heifs", ".hif")
"""Files in a folder that count as images too where pillow-heif is installed."""

_READERS = {
    'pip install "pyface-engine[heic]"': HEIC_SUFFIXES,
    "extract the frames, for example with ffmpeg": (
        *(".mp4", ".m4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mpe", ".m2v", ".mts", ".m2ts"),
        *(".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".vob", ".mxf", ".mjpeg", ".mjpg", ".y4m"),
    ),
    "develop raw files to JPEG or TIFF, for example with darktable": (
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".raf", ".rw2", ".pef"),
        *(".srw", ".x3f", ".3fr", ".iiq", ".erf", ".mrw", ".dcr", ".kdc"),
    ),
    "convert to PNG, for example with ImageMagick": (
        *(".jxl", ".jxr", ".wdp", ".hdp", ".psd", ".psb", ".xcf", ".tga", ".ico", ".icns", ".cur", ".exr", ".hdr"),
        *(".pic", ".pam", ".pfm", ".pcx", ".dds", ".ras", ".sr", ".sgi", ".svg", ".eps", ".wmf", ".emf", ".dcm"),
    ),
}
_READER_OF = {suffix: reader for reader, suffixes in _READERS.items() for suffix in suffixes}

ADDRESS = "pyface reads files, not addresses; download it first"


class SourceError(ValueError):
    """The images cannot be found, or their copies would go where they must not; the text says why."""


def find_sources(
    arguments: Iterable[str],
    *,
    recursive: bool = False,
    skip: Path | None = None,
    skipped: Counter[str] | None = None,
) -> list[str]:
    """Finds the images that files, folders and patterns stand for.

    A folder stands for the images in it, hidden ones excepted, in the order of their names; a pattern for what a
    shell would make of it, so it works in quotes and where shells expand nothing. A file that is not there is passed
    on where others are named too, so that whoever reads them all reports it and goes on.

    Args:
        arguments: Files, folders, and patterns with `*`, `?`, `[...]` or `**`.
        recursive: Look into the subfolders of folders too.
        skip: A folder whose content is left out where it lies within another, such as the one for drawn copies.
        skipped: Gets the number of files in folders that are images or films by their names, but of a kind that
            pyface does not read, by suffix; `describe_skipped` puts them into words.

    Returns:
        The paths, spelled as the arguments were, each image once.

    Raises:
        SourceError: A folder or pattern stands for no image, a folder cannot be read, or the only argument is not
            there.
    """
    found: dict[str, str] = {}
    skipped = Counter() if skipped is None else skipped
    arguments = list(arguments)
    if len(arguments) == 1 and not _is_pattern(arguments[0]) and not os.path.exists(arguments[0]):
        reason = ADDRESS if is_address(arguments[0]) else "there is no such file or folder"
        raise SourceError(f"{arguments[0]}: {reason}")
    for argument in arguments:
        matches = sorted(glob.glob(argument, recursive=True)) if _is_pattern(argument) else [argument]
        count = 0
        for match in matches:
            for path in _pictures(match, recursive, skip, skipped) if os.path.isdir(match) else [match]:
                found.setdefault(os.path.normpath(path), path)
                count += 1
        if count == 0:
            raise SourceError("; ".join([_nothing(argument, recursive), *describe_skipped(skipped)]))
    return list(found.values())


def is_picture(name: str) -> bool:
    """Tells whether a file in a folder counts as an image, by its name; hidden files do not."""
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and (suffix in IMAGE_SUFFIXES or (suffix in HEIC_SUFFIXES and _reads_heic()))


def _reads_heic() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def count_unreadable(names: Iterable[str]) -> Counter[str]:
    """Counts, by suffix, the files that are images or films by their names, but of a kind that pyface does not read.

    Example:
        >>> count_unreadable(["a.MP4", "b.mp4", "c.jpg", "notes.txt"])
        Counter({'.mp4': 2})
    """
    suffixes = (
        os.path.splitext(name)[1].lower() for name in names if not name.startswith(".") and not is_picture(name)
    )
    return Counter(suffix for suffix in suffixes if suffix in _READER_OF)


def describe_skipped(skipped: Counter[str]) -> list[str]:
    """Returns a sentence about the files that were skipped and what would read them, [] if there are none.

    Example:
        >>> describe_skipped(Counter({".mp4": 2}))
        ['skipped 2 .mp4 (extract the frames, for example with ffmpeg)']
    """
    parts = [f"{number:,} {suffix} ({_READER_OF[suffix]})" for suffix, number in sorted(skipped.items())]
    return [f"skipped {', '.join(parts)}"] if parts else []


def is_address(name: str) -> bool:
    """Tells whether a name is an address on the web."""
    return name.lower().startswith(("http://", "https://", "ftp://"))


def _is_pattern(argument: str) -> bool:
    # "photo [1].jpg" may be a file, and addresses have question marks.
    return glob.has_magic(argument) and not os.path.exists(argument) and not is_address(argument)


def _nothing(argument: str, recursive: bool) -> str:
    if not os.path.isdir(argument):
        return f"{argument}: no file matches this pattern"
    hint = "" if recursive else "; --recursive includes its subfolders"
    return f"{argument}: there are no images in this folder{hint}"


def _pictures(folder: str, recursive: bool, skip: Path | None, counted: Counter[str]) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: the folder cannot be read ({error.strerror})")

    skipped = None if skip is None else os.path.realpath(skip)
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name
            for name in (folders if recursive else [])
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) != skipped
        )
        counted.update(count_unreadable(files))
        for name in sorted(files):
            if is_picture(name):
                yield os.path.join(root, name)


def plan_copies(sources: Iterable[str], folder: Path) -> dict[str, Path]:
    """Chooses where the drawn copy of each image goes: its path below the folder that all images share.

    JPEG and PNG images keep their name; others become PNG and have `.png` added to it.

    Raises:
        SourceError: A copy would overwrite one of the images.

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
            raise SourceError(f"{folder}: saving there would overwrite the image {source}; choose another folder")
        plan[source] = copy
    return plan


def _copy_name(name: str) -> str:
    return name if name.lower().endswith((".jpg", ".jpeg", ".png")) else f"{name}.png"


def _free(path: Path, taken: set[str]) -> Path:
    """Numbers a name until no other image has it, by the rules of file systems that ignore case."""
    choice, number = path, 2
    while str(choice).lower() in taken:
        choice, number = path.with_stem(f"{path.stem} ({number})"), number + 1
    taken.add(str(choice).lower())
    return choice
