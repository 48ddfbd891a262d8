"""Where `pyface detect` writes its results: standard output, or a file or folder in one of several formats."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pyface.cli.console import fail, print_status
from pyface.cli.detect.request import Request
from pyface.io.results import FinishedFile, OutputError, ParquetFile, ResultFile, json_line
from pyface.io.sources import Source, is_archive, is_video, paths_below, source_key, source_name

if TYPE_CHECKING:
    from pyface.data.result_writers import YoloFolder

Write: TypeAlias = Callable[[dict[str, Any]], None]


class Output(NamedTuple):
    """An open output, and what an earlier run has written to it.

    Attributes:
        write: Writes a result.
        done: The keys of the sources that are done, and whether each failed.
        again: The sources that could not be read and are tried again; their results must be written first, in order.
        begun: The key of the video within which the results end, and the number of its last frame; None: there is none.
    """

    write: Write
    done: dict[str, bool]
    again: list[Source]
    begun: tuple[str, int] | None


@contextlib.contextmanager
def open_output(request: Request, sources: list[Source]) -> Iterator[Output]:
    """Opens what the request names, or standard output."""
    output = request.output_file
    if output is None:
        is_terminal = sys.stdout.isatty()

        def print_line(result: dict[str, Any]) -> None:
            if not is_terminal:
                sys.stdout.buffer.write(json_line(result))
                sys.stdout.buffer.flush()

        yield Output(print_line, {}, [], None)
        return
    try:
        if request.is_resumable:
            with _open_growing(request, output, sources) as growing:
                yield growing
        else:
            with _open_finished(request, output, sources) as file:
                has_errors = request.output_format == "parquet"
                yield Output(file.write if has_errors else _reporting_failures(file.write), {}, [], None)
    except OutputError as error:
        fail(error)


@contextlib.contextmanager
def _open_growing(request: Request, output: Path, sources: list[Source]) -> Iterator[Output]:
    """Opens a JSON Lines or CSV file, which may be continued."""
    file = ResultFile(
        output,
        as_csv=request.output_format == "csv",
        resume=request.resume,
        overwrite=request.overwrite,
        # A saved video and its tracks begin with its first frame.
        whole_videos=request.track or request.copies.save is not None,
        made_by=request.facts(),
    )
    if file.is_unchecked:
        print_status(
            f"pyface: {output} has no {output.name}.run.json beside it, so pyface cannot check that it was "
            f"made with the same model and options"
        )
    begun = None if file.begun is None else (source_key(file.begun[0]), file.begun[1])
    with file:
        if begun is not None and begun[0] not in map(source_key, sources):
            fail(f"{output} ends within {begun[0]}; name that video too, so that it can be finished first")
        done = {source_key(name): failed for name, failed in file.done.items()}
        again = _retried(file, sources, done)
        file.retry({name: source_name(source) for name, source in again.items()})
        for source in again.values():
            del done[source_key(source)]
        yield Output(file.write, done, list(again.values()), begun)


def _retried(file: ResultFile, sources: list[Source], done: Iterable[str]) -> dict[str, Source]:
    """Returns the sources that are tried again, by their names in the file.

    An archive of which the file has images has broken off. As for videos that have, its results stay.
    """
    named = {source_key(source): source for source in sources}
    failed = {name: named[source_key(name)] for name in file.failed if source_key(name) in named}
    return {
        name: source
        for name, source in failed.items()
        if not is_archive(source) or not any(key.startswith(f"{source_key(source)}/") for key in done)
    }


def _open_finished(request: Request, output: Path, sources: list[Source]) -> FinishedFile | YoloFolder:
    """Opens a file or folder of results that is complete when the run ends."""
    from pyface.data.result_writers import CocoFile, LabelStudioFile, YoloFolder

    match request.output_format:
        case "parquet":
            return ParquetFile(output, overwrite=request.overwrite)
        case "coco":
            return CocoFile(output, overwrite=request.overwrite)
        case "yolo":
            return YoloFolder(output, paths_below(sources))
        case "labelstudio":
            video = next((source_name(source) for source in sources if is_video(source)), None)
            if video is not None:
                raise OutputError(f"--format labelstudio is for images, got the video {video}; leave it out")
            return LabelStudioFile(output, request.detector.model, overwrite=request.overwrite)
    raise OutputError(
        f"{output}: a file of results must end with .jsonl, .csv or .parquet; otherwise add --format coco, yolo or "
        f"labelstudio"
    )


def _reporting_failures(write: Write) -> Write:
    """Adds a line on standard error about images that failed, for which some formats have no place."""

    def write_or_report(result: dict[str, Any]) -> None:
        write(result)
        if result["error"] is not None:
            print_status(f"pyface: {result['error']}")

    return write_or_report
