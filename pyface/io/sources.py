"""Which images and videos a command line names, and where their copies go."""

import glob
import importlib.util
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import TypeAlias
from urllib.parse import urlsplit

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm"),
)
"""Which files in a folder count as images. A file that is named itself is read whatever its suffix."""

HEIC_SUFFIXES = (".heic", ".heif", ".heics", ".heifs", ".hif")
"""Files in a folder that count as images too where pillow-heif is installed."""

FILM_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mpe", ".m2v", ".mts", ".m2ts"),
    *(".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".vob", ".mxf", ".mjpeg", ".mjpg", ".y4m"),
)
"""Which files count as videos; in a folder only where PyAV is installed."""

_NAMED_FILM_SUFFIXES = (*FILM_SUFFIXES, ".ts")  # in a folder .ts is more often TypeScript

Source: TypeAlias = str | int
"""A file or an address; a number is that of a camera."""

_READERS = {
    'pip install "pyface-engine[heic]"': HEIC_SUFFIXES,
    'pyface detect reads videos after pip install "pyface-engine[video]"': FILM_SUFFIXES,
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

ADDRESS = "pyface reads images from files, not from addresses: download it first"


class SourceError(ValueError):
    """The images cannot be found, or their copies would go where they must not; the text says why."""


def find_sources(
    arguments: Iterable[str],
    *,
    names: Iterable[str] = (),
    recursive: bool = False,
    films: bool = False,
    skip: Sequence[Path] = (),
    skipped: Counter[str] | None = None,
) -> list[str]:
    """Finds the images and videos that files, folders, patterns and addresses stand for.

    A folder stands for the images and videos in it, hidden ones excepted, in the order of their names; a pattern for
    what a shell would make of it, so it works in quotes and where shells expand nothing. A file that is not there is
    returned if others are named as well: its reader reports it and continues.

    Args:
        arguments: Files, folders, and patterns with `*`, `?`, `[...]` or `**`.
        names: More files and folders, such as those of a list; none of them is a pattern.
        recursive: Look into the subfolders of folders too.
        films: Take the videos in folders too, if PyAV is installed.
        skip: Folders whose content is left out where they lie within another, such as the one for drawn copies.
        skipped: Gets the number of files in folders that are images or videos by their names, but of a kind that
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
    lone = arguments[0] if len(arguments) == 1 else None
    if lone is not None and not (_is_pattern(lone) or os.path.exists(lone) or is_film_address(lone)):
        reason = ADDRESS if is_address(lone) else "there is no such file or folder"
        raise SourceError(f"{lone}: {reason}")
    for argument in arguments:
        matches = sorted(glob.glob(argument, recursive=True)) if _is_pattern(argument) else [argument]
        count = 0
        for match in matches:
            for path in _files(match, recursive, films, skip, skipped) if os.path.isdir(match) else [match]:
                found.setdefault(source_key(path), path)
                count += 1
        if count == 0:
            raise SourceError("; ".join([_nothing(argument, recursive), *describe_skipped(skipped)]))
    for name in names:
        files = list(_files(name, recursive, films, skip, skipped)) if os.path.isdir(name) else []
        for path in files or [name]:  # an empty folder is reported as what cannot be read
            found.setdefault(source_key(path), path)
    return list(found.values())


def read_list(file: str) -> list[str]:
    """Reads names of files, one per line, or separated by null characters if there are any (`find -print0`).

    Args:
        file: A text file; "-" for the standard input.

    Raises:
        SourceError: The file cannot be read, or names nothing.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SourceError(f"{file}: the list cannot be read ({error.strerror or error})") from None
    parts = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    names = [os.fsdecode(part) for part in parts if part]
    if not names:
        raise SourceError(f"{'the standard input' if file == '-' else file}: this list names no files")
    return names


def select_sources(sources: Iterable[Source], globs: Sequence[str] = (), excludes: Sequence[str] = ()) -> list[Source]:
    """Keeps the sources that fit one of `globs`, if there are any, and none of `excludes`.

    A pattern without a slash is that of a name, one with slashes that of the end of a path.

    Raises:
        SourceError: Nothing is left.

    Example:
        >>> select_sources(["a/1.jpg", "a/1.png", "a/thumbs/1.jpg"], ["*.jpg"], ["thumbs/*"])
        ['a/1.jpg']
    """

    def fits(source: Source, patterns: Sequence[str]) -> bool:
        return any(PurePath(source_name(source)).match(pattern) for pattern in patterns)

    kept = [source for source in sources if (not globs or fits(source, globs)) and not fits(source, excludes)]
    if not kept:
        raise SourceError("--glob and --exclude leave no images or videos; use fewer of them or other sources")
    return kept


def parse_shard(text: str) -> tuple[int, int]:
    """Reads "I/N", the I-th of N shards, counted from 1.

    Raises:
        SourceError: The text is something else.

    Example:
        >>> parse_shard("2/8")
        (2, 8)
    """
    numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
        raise SourceError(f"--shard must be I/N with I from 1 to N, such as 2/8, got {text}")
    return int(numbers[1]), int(numbers[2])


def is_in_shard(source: Source, shard: tuple[int, int]) -> bool:
    """Tells whether a source belongs to a shard.

    Its name alone decides, so that it stays in its shard when others are added or done before.
    """
    return zlib.crc32(os.fsencode(source_key(source))) % shard[1] == shard[0] - 1


def is_picture(name: str) -> bool:
    """Tells whether a file in a folder counts as an image, by its name; hidden files do not."""
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and (suffix in IMAGE_SUFFIXES or (suffix in HEIC_SUFFIXES and _reads_heic()))


def _reads_heic() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def is_film(source: Source) -> bool:
    """Tells whether a source is read as a video: cameras, addresses that name no image, files by their suffix.

    Example:
        >>> [is_film(source) for source in ("a.MP4", "a.jpg", 0, "rtsp://camera/live", "https://x.org/a.jpg")]
        [True, False, True, True, False]
    """
    if isinstance(source, int):
        return True
    return is_film_address(source) or (not is_address(source) and _suffix(source) in _NAMED_FILM_SUFFIXES)


def is_live(source: Source) -> bool:
    """Tells whether a source is live: a slower detector must drop its frames."""
    return isinstance(source, int) or source.lower().startswith(_LIVE)


def _is_film_in_folder(name: str) -> bool:
    is_one = not name.startswith(".") and _suffix(name) in FILM_SUFFIXES
    return is_one and importlib.util.find_spec("av") is not None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def source_name(source: Source) -> str:
    """Returns how results call a source.

    Example:
        >>> source_name("a.mp4"), source_name(0)
        ('a.mp4', 'camera 0')
    """
    return f"camera {source}" if isinstance(source, int) else source


def source_key(source: Source) -> str:
    """Returns what two spellings of one source share."""
    name = source_name(source)
    return name if is_address(name) else os.path.normpath(name)


def count_unreadable(names: Iterable[str]) -> Counter[str]:
    """Counts, by suffix, the files that are images or videos by their names, but of a kind that pyface does not read.

    Example:
        >>> count_unreadable(["a.CR2", "b.cr2", "c.jpg", "notes.txt"])
        Counter({'.cr2': 2})
    """
    unread = (name for name in names if not (name.startswith(".") or is_picture(name) or _is_film_in_folder(name)))
    suffixes = map(_suffix, unread)
    return Counter(suffix for suffix in suffixes if suffix in _READER_OF)


def describe_skipped(skipped: Counter[str]) -> list[str]:
    """Returns a sentence about the files that were skipped and what would read them, [] if there are none.

    Example:
        >>> describe_skipped(Counter({".heic": 2}))
        ['skipped 2 .heic (pip install "pyface-engine[heic]")']
    """
    parts = [f"{number:,} {suffix} ({_READER_OF[suffix]})" for suffix, number in sorted(skipped.items())]
    return [f"skipped {', '.join(parts)}"] if parts else []


def is_address(name: str) -> bool:
    """Tells whether a name is an address in a network."""
    return name.lower().startswith(("http://", "https://", "ftp://", *_LIVE))


_LIVE = ("rtsp://", "rtsps://", "rtmp://", "udp://", "srt://")


def is_film_address(name: str) -> bool:
    """Tells whether a name is an address that is read as a video: any that does not end like an image."""
    return is_address(name) and _suffix(urlsplit(name).path) not in (*IMAGE_SUFFIXES, *HEIC_SUFFIXES)


def _is_pattern(argument: str) -> bool:
    # "photo [1].jpg" may be a file, and addresses have question marks.
    return glob.has_magic(argument) and not os.path.exists(argument) and not is_address(argument)


def _nothing(argument: str, recursive: bool) -> str:
    if not os.path.isdir(argument):
        return f"{argument}: no file matches this pattern"
    hint = "" if recursive else "; --recursive includes its subfolders"
    return f"{argument}: there are no images in this folder{hint}"


def _files(folder: str, recursive: bool, films: bool, skip: Sequence[Path], counted: Counter[str]) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise SourceError(f"{error.filename}: the folder cannot be read ({error.strerror})")

    skipped = {os.path.realpath(path) for path in skip}
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name
            for name in (folders if recursive else [])
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) not in skipped
        )
        counted.update(count_unreadable(files))
        for name in sorted(files):
            if is_picture(name) or (films and _is_film_in_folder(name)):
                yield os.path.join(root, name)


def copy_name(name: str, is_film: bool) -> str:
    """Returns what the copy of a file is called: JPEG, PNG and MP4 files keep their names, others become PNG or MP4.

    Example:
        >>> copy_name("a.JPG", False), copy_name("a.tif", False), copy_name("a.mov", True)
        ('a.JPG', 'a.tif.png', 'a.mov.mp4')
    """
    kept, added = ((".mp4",), ".mp4") if is_film else ((".jpg", ".jpeg", ".png"), ".png")
    return name if name.lower().endswith(kept) else f"{name}{added}"


def plan_copies(
    sources: Iterable[Source], folder: Path, rename: Callable[[str, bool], str] = copy_name
) -> dict[Source, Path]:
    """Chooses where the copy of each image and video goes: its path below the folder that all files share.

    Args:
        sources: The images and videos.
        folder: Where all copies go.
        rename: Makes the copy's name from the original's, and from whether that is a video.

    Raises:
        SourceError: A copy would overwrite one of the sources.

    Example:
        >>> plan = plan_copies(["a/face.jpg", "b/face.jpg", "b/scan.tif", "b/film.mov", 0], Path("out"))
        >>> [path.as_posix() for path in plan.values()]
        ['out/a/face.jpg', 'out/b/face.jpg', 'out/b/scan.tif.png', 'out/b/film.mov.mp4', 'out/camera 0.mp4']
    """
    sources = list(sources)
    files: dict[Source, str] = {
        source: os.path.abspath(source) for source in sources if isinstance(source, str) and not is_address(source)
    }
    try:
        shared = os.path.commonpath([os.path.dirname(path) for path in files.values()]) if files else ""
    except ValueError:  # several drives
        shared = ""
    originals: set[str] = set()  # made for the first copy that exists, since it takes long for many files
    plan: dict[Source, Path] = {}
    taken: set[str] = set()
    for source in sources:
        path = files.get(source)
        if path is None:
            below = _address_name(source)
        else:
            below = os.path.relpath(path, shared) if shared else path.replace(":", "").lstrip("/\\")
        copy = _free(folder / rename(below, is_film(source)), taken)
        if os.path.lexists(copy):
            originals = originals or {os.path.realpath(path) for path in files.values()}
            if os.path.realpath(copy) in originals:
                raise SourceError(f"{folder}: saving there would overwrite the image {source}; choose another folder")
        plan[source] = copy
    return plan


def _address_name(source: Source) -> str:
    """A file name for a camera or an address, without the password that it may hold."""
    if isinstance(source, int):
        return source_name(source)
    parts = urlsplit(source)
    return re.sub(r"[^\w.-]+", "-", f"{parts.hostname or ''}{parts.path}").strip("-") or "film"


def _free(path: Path, taken: set[str]) -> Path:
    """Numbers a name until no other image has it, by the rules of file systems that ignore case."""
    choice, number = path, 2
    while str(choice).lower() in taken:
        choice, number = path.with_stem(f"{path.stem} ({number})"), number + 1
    taken.add(str(choice).lower())
    return choice
