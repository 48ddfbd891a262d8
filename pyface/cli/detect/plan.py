"""Which images and videos `pyface detect` reads, and where the copies and crops of each go."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pyface.cli.console import fail, print_status
from pyface.cli.detect.request import Request, SourceRequest
from pyface.io.files import own_folder
from pyface.io.sources import (
    Source,
    SourceError,
    describe_skipped,
    find_sources,
    is_in_shard,
    is_live,
    is_unclear,
    is_video,
    parse_shard,
    plan_copies,
    read_list,
    select_sources,
    source_name,
)


class Plan(NamedTuple):
    """What a run reads, and where its files go.

    Attributes:
        sources: The images and videos to read.
        copies: Where the copy of each goes; None: no copies.
        crops: Where the crops of each go, without their numbers and the suffix; None: no crops.
    """

    sources: list[Source]
    copies: dict[Source, Path] | None
    crops: dict[Source, Path] | None


def make_plan(request: Request) -> Plan:
    """Finds the sources, and fails if something is wrong with them."""
    save = request.copies.save
    shard = request.sources.shard
    try:
        part = (1, 1) if shard is None else parse_shard(shard)
        sources = _select_sources(request.sources, request.copies.folders)
        _check_frame_options(request, sources)
        live = next((source for source in sources if is_live(source)), None)
        if request.resume and live is not None:
            fail(f"{source_name(live)} has no frames to go back to; use --overwrite or another --output, not --resume")
        copies = None if save is None else plan_copies(sources, save)
        wanted = request.copies.crops
        crops = None if wanted is None else plan_copies(sources, wanted, lambda name, _: name)
        sources = [source for source in sources if is_in_shard(source, part)]  # copies are named as without shards
    except SourceError as error:
        fail(error)
    return Plan(sources, copies, crops)


def own_folders(request: Request) -> list[Path]:
    """Makes the folders for copies and crops, and returns those in which files may be replaced."""
    owned = []
    for folder in request.copies.folders:
        try:
            owned += [folder] if own_folder(folder) or request.continues else []
        except OSError as error:
            reason = "it is a file; give a folder" if folder.is_file() else error.strerror
            fail(f"{folder}: the images cannot be saved there ({reason})")
    return owned


def _check_frame_options(request: Request, sources: list[Source]) -> None:
    """Prints a note if options that choose frames have no effect; no error, since a folder may get videos later."""
    option = "--fps" if request.fps is not None else "--every"
    is_given = request.fps is not None or request.every > 1
    if is_given and not any(is_video(source) or is_unclear(source) for source in sources):
        print_status(f"pyface: {option} has no effect, since none of the sources is a video")


def _select_sources(request: SourceRequest, skip: list[Path]) -> list[Source]:
    """Returns all sources but those that patterns exclude, and prints which kinds of files are skipped."""
    skipped: Counter[str] = Counter()
    sources: list[Source] = [] if request.camera is None else [request.camera]
    arguments = request.sources or []
    list_file = "-" if "-" in arguments else request.from_file
    names = [] if list_file is None else read_list(list_file)
    arguments = [argument for argument in arguments if argument != "-"]
    found = find_sources(arguments, names=names, recursive=request.recursive, videos=True, skip=skip, skipped=skipped)
    for text in describe_skipped(skipped):
        print_status(f"pyface: {text}")
    if request.glob or request.exclude:
        return select_sources([*found, *sources], request.glob or [], request.exclude or [])
    return [*found, *sources]
