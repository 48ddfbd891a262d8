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

from pyface.io.remote import LIVE_SCHEMES, RemoteError, is_web, list_remote, scheme_of

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm"),
)
"""Which files in a folder count as images. A file that is named directly is read whatever its suffix."""

HEIC_SUFFIXES = (".heic", ".heif", ".heics", ".heifs", ".hif")
"""Files in a folder that count as images too where pillow-heif is installed."""

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mpe", ".m2v", ".mts", ".m2ts"),
    *(".wmv", ".asf", ".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".vob", ".mxf", ".mjpeg", ".mjpg", ".y4m"),
)
"""Which files count as videos; in a folder only where PyAV is installed."""

_NAMED_VIDEO_SUFFIXES = (*VIDEO_SUFFIXES, ".ts")  # in a folder .ts is more often TypeScript

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
"""Which files count as archives of images, if they are named directly."""

Source: TypeAlias = str | int
"""A file or a URL; a number is that of a camera."""

_READERS = {
    'pip install "pyface-engine[heic]"': HEIC_SUFFIXES,
    'pyface detect reads videos after pip install "pyface-engine[video]"': VIDEO_SUFFIXES,
    "name them to read the images in them": tuple(suffix for suffix in ARCHIVE_SUFFIXES if suffix.count(".") == 1),
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


class SourceError(ValueError):
    """The images cannot be found, or their copies would go where they must not; the text says why."""


def find_sources(
    arguments: Iterable[str],
    *,
    names: Iterable[str] = (),
    recursive: bool = False,
    videos: bool = False,
    skip: Sequence[Path] = (),
    skipped: Counter[str] | None = None,
) -> list[str]:
    """Finds the images and videos that files, folders, patterns and URLs stand for.

    A folder stands for the images and videos in it, except hidden ones, in the order of their names. A pattern stands
    for what a shell would expand it to, so it works in quotes too, or where shells do not expand it. URLs may be
    patterns with `*`, and folders if their servers list files (web servers do so only for patterns). A file that is
    not there is returned if others are named as well: its reader reports it and continues. An archive is one source.

    Args:
        arguments: Files, folders, URLs, and patterns with `*`, `?`, `[...]` or `**`.
        names: More files and folders, such as those of a list; none of them is a pattern.
        recursive: Include the subfolders of folders.
        videos: Take the videos in folders too, if PyAV is installed.
        skip: Folders whose content is left out if they lie within another, such as the one for drawn copies.
        skipped: Counts, by suffix, the files in folders that are images or videos by their names, but of a kind that
            pyface does not read; `describe_skipped` puts them into words.

    Returns:
        The paths, spelled as the arguments were, each image once.

    Raises:
        SourceError: A folder or pattern stands for no image, a folder cannot be read or listed, or the only argument
            does not exist.
    """
    found: dict[str, str] = {}
    skipped = Counter() if skipped is None else skipped
    arguments = list(arguments)
    lone = arguments[0] if len(arguments) == 1 else None
    if lone is not None and not (_is_pattern(lone) or os.path.exists(lone) or is_address(lone)):
        raise SourceError(f"{lone}: there is no such file or folder")
    for argument in arguments:
        count = 0
        for match in _matches(argument, recursive, videos, skipped):
            for path in _files(match, recursive, videos, skip, skipped) if os.path.isdir(match) else [match]:
                found.setdefault(source_key(path), path)
                count += 1
        if count == 0:
            raise SourceError("; ".join([_nothing(argument, recursive), *describe_skipped(skipped)]))
    for name in names:
        files = list(_files(name, recursive, videos, skip, skipped)) if os.path.isdir(name) else []
        for path in files or [name]:  # an empty folder is reported as what cannot be read
            found.setdefault(source_key(path), path)
    return list(found.values())


def read_list(file: str) -> list[str]:
    """Reads file names, one per line, or separated by null characters if there are any (`find -print0`).

    Args:
        file: A text file; "-" for standard input.

    Raises:
        SourceError: The file cannot be read, or is empty.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise SourceError(f"{file}: the list cannot be read ({error.strerror or error})") from None
    parts = data.split(b"\0") if b"\0" in data else [line.removesuffix(b"\r") for line in data.split(b"\n")]
    names = [os.fsdecode(part) for part in parts if part]
    if not names:
        raise SourceError(f"{'standard input' if file == '-' else file}: this list names no files")
    return names


def select_sources(sources: Iterable[Source], globs: Sequence[str] = (), excludes: Sequence[str] = ()) -> list[Source]:
    """Keeps the sources that match one of `globs`, if there are any, and none of `excludes`; see `is_selected`.

    Archives need not match `globs`, which apply to their content.

    Raises:
        SourceError: Nothing is left.

    Example:
        >>> select_sources(["a/1.jpg", "a/1.png", "a/thumbs/1.jpg"], ["*.jpg"], ["thumbs/*"])
        ['a/1.jpg']
    """

    def globs_for(source: Source) -> Sequence[str]:
        return () if is_archive(source) else globs

    kept = [source for source in sources if is_selected(source_name(source), globs_for(source), excludes)]
    if not kept:
        raise SourceError("--glob and --exclude leave no images or videos; use fewer of them or other sources")
    return kept


def is_selected(name: str, globs: Sequence[str], excludes: Sequence[str]) -> bool:
    """Tells whether a name matches one of `globs`, if there are any, and none of `excludes`.

    A pattern without a slash must match the name, one with slashes the end of the path.
    """

    def fits(patterns: Sequence[str]) -> bool:
        return any(PurePath(name).match(pattern) for pattern in patterns)

    return (not globs or fits(globs)) and not fits(excludes)


def parse_shard(text: str) -> tuple[int, int]:
    """Reads "I/N", the I-th of N shards, counted from 1.

    Raises:
        SourceError: The text is not a shard.

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

    Its name alone decides, so it stays in its shard when others are added or already done.
    """
    return zlib.crc32(os.fsencode(source_key(source))) % shard[1] == shard[0] - 1


def is_picture(name: str) -> bool:
    """Tells whether a file in a folder counts as an image, by its name; hidden files do not."""
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and (suffix in IMAGE_SUFFIXES or (suffix in HEIC_SUFFIXES and _reads_heic()))


def _reads_heic() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def is_video(source: Source) -> bool:
    """Tells whether a source is read as a video: cameras and live URLs are, others by their suffix.

    Example:
        >>> [is_video(source) for source in ("a.MP4", "a.jpg", 0, "rtsp://camera/live", "https://x.org/a.mp4?b=c.jpg")]
        [True, False, True, True, True]
    """
    if is_unclear(source) and importlib.util.find_spec("aiohttp") is None:
        return True  # only PyAV can tell
    return is_live(source) or _suffix(path_of(source)) in _NAMED_VIDEO_SUFFIXES


def is_archive(source: Source) -> bool:
    """Tells whether a source is read as an archive of images, by its suffix.

    Example:
        >>> [is_archive(source) for source in ("a.tar", "a.TAR.GZ", "s3://bucket/a.zip", "a.jpg")]
        [True, True, True, False]
    """
    return path_of(source).lower().endswith(ARCHIVE_SUFFIXES)


def is_unclear(source: Source) -> bool:
    """Tells whether only a source's content shows what it is: an http or https URL without a known suffix.

    Example:
        >>> [is_unclear(source) for source in ("a", "https://x.org/photo?id=3", "https://x.org/a.jpg")]
        [False, True, False]
    """
    return is_web(source_name(source)) and not _has_known_suffix(path_of(source))


def is_live(source: Source) -> bool:
    """Tells whether a source is live: a slower detector must drop its frames."""
    return isinstance(source, int) or scheme_of(source) in LIVE_SCHEMES


def _is_video_in_folder(name: str) -> bool:
    is_one = not name.startswith(".") and _suffix(name) in VIDEO_SUFFIXES
    return is_one and importlib.util.find_spec("av") is not None


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def path_of(source: Source) -> str:
    """Returns a file's name as it is, and the path of a URL, without its query; "" for a camera."""
    name = "" if isinstance(source, int) else source
    return urlsplit(name).path if is_web(name) else name


def _has_known_suffix(name: str) -> bool:
    known = (*IMAGE_SUFFIXES, *HEIC_SUFFIXES, *_NAMED_VIDEO_SUFFIXES, *ARCHIVE_SUFFIXES)
    return name.lower().endswith(known)


def source_name(source: Source) -> str:
    """Returns the name of a source in results.

    Example:
        >>> source_name("a.mp4"), source_name(0)
        ('a.mp4', 'camera 0')
    """
    return f"camera {source}" if isinstance(source, int) else source


def source_key(source: Source) -> str:
    """Returns a key that is the same for all spellings of a source."""
    name = source_name(source)
    return name if is_address(name) else os.path.normpath(name)


def count_unreadable(names: Iterable[str]) -> Counter[str]:
    """Counts, by suffix, the files that are images or videos by their names, but of a kind that pyface does not read.

    Example:
        >>> count_unreadable(["a.CR2", "b.cr2", "c.jpg", "notes.txt"])
        Counter({'.cr2': 2})
    """
    unread = (name for name in names if not (name.startswith(".") or is_picture(name) or _is_video_in_folder(name)))
    suffixes = map(_suffix, unread)
    return Counter(suffix for suffix in suffixes if suffix in _READER_OF)


def describe_skipped(skipped: Counter[str]) -> list[str]:
    """Returns a list with a sentence about the files that were skipped and what would read them, or an empty one.

    Example:
        >>> describe_skipped(Counter({".heic": 2}))
        ['skipped 2 .heic (pip install "pyface-engine[heic]")']
    """
    parts = [f"{number:,} {suffix} ({_READER_OF[suffix]})" for suffix, number in sorted(skipped.items())]
    return [f"skipped {', '.join(parts)}"] if parts else []


def is_address(name: str) -> bool:
    """Tells whether a name is a URL."""
    return scheme_of(name) != ""


def _is_pattern(argument: str) -> bool:
    # "photo [1].jpg" may be a file, and URLs have question marks.
    return glob.has_magic(argument) and not os.path.exists(argument) and not is_address(argument)


def _matches(argument: str, recursive: bool, videos: bool, skipped: Counter[str]) -> list[str]:
    """The files and folders that an argument stands for; for a remote folder, the files in it."""
    if not is_address(argument):
        return sorted(glob.glob(argument, recursive=True)) if _is_pattern(argument) else [argument]
    is_pattern = "*" in path_of(argument)
    if is_live(argument) or not (is_pattern or not (is_web(argument) or _has_known_suffix(argument))):
        return [argument]
    try:
        files = list_remote(argument, recursive=recursive)
    except RemoteError as error:
        raise SourceError(f"{argument} cannot be listed: {error}") from None
    if is_pattern:
        return files
    names = {file: file.rpartition("/")[2] for file in files}
    skipped.update(count_unreadable(names.values()))
    return [
        file
        for file, name in names.items()
        if file == argument or is_picture(name) or (videos and _is_video_in_folder(name))
    ]


def _nothing(argument: str, recursive: bool) -> str:
    if not os.path.isdir(argument) and (_is_pattern(argument) or "*" in argument):
        return f"{argument}: no file matches this pattern"
    hint = "; --recursive includes its subfolders" if not recursive and _may_have_subfolders(argument) else ""
    return f"{argument}: there are no images in this folder{hint}"


def _may_have_subfolders(folder: str) -> bool:
    if is_address(folder):
        return True
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


def _files(folder: str, recursive: bool, videos: bool, skip: Sequence[Path], counted: Counter[str]) -> Iterator[str]:
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
            if is_picture(name) or (videos and _is_video_in_folder(name)):
                yield os.path.join(root, name)


def copy_name(name: str, is_video: bool) -> str:
    """Returns the name of the copy of a file: JPEG, PNG and MP4 files keep their names, others become PNG or MP4.

    Example:
        >>> copy_name("a.JPG", False), copy_name("a.tif", False), copy_name("a.mov", True)
        ('a.JPG', 'a.tif.png', 'a.mov.mp4')
    """
    kept, added = ((".mp4",), ".mp4") if is_video else ((".jpg", ".jpeg", ".png"), ".png")
    return name if name.lower().endswith(kept) else f"{name}{added}"


def plan_copies(
    sources: Iterable[Source], folder: Path, rename: Callable[[str, bool], str] = copy_name
) -> dict[Source, Path]:
    """Chooses where the copy of each image and video goes: its path below the folder that all files share.

    An archive becomes a folder, in which `plan_member` places the copies of its images.

    Args:
        sources: The images and videos.
        folder: Where all copies go.
        rename: Makes the copy's name from the original's, and from whether that is a video.

    Raises:
        SourceError: A copy would overwrite one of the sources.

    Example:
        >>> plan = plan_copies(["a/face.jpg", "b/face.jpg", "b/scan.tif", "b/video.mov", 0], Path("out"))
        >>> [path.as_posix() for path in plan.values()]
        ['out/a/face.jpg', 'out/b/face.jpg', 'out/b/scan.tif.png', 'out/b/video.mov.mp4', 'out/camera 0.mp4']
    """
    paths = paths_below(sources)
    originals: set[str] = set()  # made for the first copy that exists, since it takes a long time for many files
    plan: dict[Source, Path] = {}
    taken: set[str] = set()
    for source, below in paths.items():
        name = below if is_archive(source) else rename(below, is_video(source))
        copy = _free(folder / name, taken, keep=is_live(source))
        if os.path.lexists(copy):
            originals = originals or {os.path.realpath(path) for path in _local_paths(paths)}
            if os.path.realpath(copy) in originals:
                raise SourceError(f"{folder}: saving there would overwrite the image {source}; choose another folder")
        plan[source] = copy
    return plan


def paths_below(sources: Iterable[Source]) -> dict[Source, str]:
    """Returns the path of each source below the folder that all files share; cameras and URLs get file names.

    Example:
        >>> [path.replace(os.sep, "/") for path in paths_below(["in/a/1.jpg", "in/b/1.jpg", "s3://c/2.jpg"]).values()]
        ['a/1.jpg', 'b/1.jpg', 'c-2.jpg']
    """
    sources = list(sources)
    files: dict[Source, str] = {path: os.path.abspath(path) for path in _local_paths(sources)}
    try:
        shared = os.path.commonpath([os.path.dirname(path) for path in files.values()]) if files else ""
    except ValueError:  # several drives
        shared = ""
    below = {
        source: os.path.relpath(path, shared) if shared else path.replace(":", "").lstrip("/\\")
        for source, path in files.items()
    }
    return {source: below[source] if source in below else _address_name(source) for source in sources}


def _local_paths(sources: Iterable[Source]) -> Iterator[str]:
    return (source for source in sources if isinstance(source, str) and not is_address(source))


def plan_member(folder: Path, name: str, taken: set[str], rename: Callable[[str, bool], str] = copy_name) -> Path:
    """Chooses where the copy of an archive's image goes.

    Args:
        folder: The folder of the archive's copies.
        name: The image's path in the archive.
        taken: The copies of the images before it, to which this one is added.
        rename: As for `plan_copies`.
    """
    return _free(folder / rename(name, False), taken)


def _address_name(source: Source) -> str:
    """A file name for a camera or a URL, without the password that a URL may hold."""
    if isinstance(source, int):
        return source_name(source)
    parts = urlsplit(source)
    return re.sub(r"[^\w.-]+", "-", f"{parts.hostname or ''}{parts.path}").strip("-") or "video"


def _free(path: Path, taken: set[str], *, keep: bool = False) -> Path:
    """Adds a number to a name that another image has already; names that differ only in case count as the same.

    With `keep`, the name of an existing file is taken too: what a camera recorded cannot be recorded again.
    """
    choice, number = path, 2
    while str(choice).lower() in taken or (keep and os.path.lexists(choice)):
        choice, number = path.with_stem(f"{path.stem} ({number})"), number + 1
    taken.add(str(choice).lower())
    return choice
