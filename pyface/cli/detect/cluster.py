"""`pyface detect --ray`: the same detection on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pyface.cli.console import FAILED, INTERRUPTED, count, fail, print_status
from pyface.cli.options import DetectorRequest
from pyface.io.sources import Source

if TYPE_CHECKING:
    import ray

    from pyface.detector import FaceDetector
    from pyface.distributed import ResultFolder


PANEL = "Many machines (Ray)"


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The Ray cluster, and how to use it."""

    ray: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS",
            help="Detect on a Ray cluster; auto: this machine's cluster, or a new one on it.",
            rich_help_panel=PANEL,
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Detectors on the cluster, with --threads CPUs each.",
            show_default="as many as it has room for",
            rich_help_panel=PANEL,
        ),
    ] = None
    gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="F",
            help="GPUs per detector; with 0.25, four detectors share one.",
            show_default="1 if the cluster has GPUs",
            rich_help_panel=PANEL,
        ),
    ] = None
    image_column: Annotated[
        str,
        typer.Option(metavar="NAME", help="Parquet column with the contents of image files.", rich_help_panel=PANEL),
    ] = "bytes"
    source_column: Annotated[
        str, typer.Option(metavar="NAME", help="Parquet column with the names of the images.", rich_help_panel=PANEL)
    ] = "source"


@dataclass(frozen=True)
class FolderRequest:
    """The folder of results, and what to do with those already in it."""

    path: str
    form: Literal["parquet", "jsonl"]
    resume: bool
    overwrite: bool


def detect_on_cluster(
    options: ClusterOptions, request: DetectorRequest, sources: list[Source], wanted: FolderRequest
) -> None:
    """Runs a detector on a Ray cluster, and exits with the command's status."""
    try:
        import ray

        import pyface.distributed  # noqa: F401
    except ImportError as error:
        fail(f'--ray needs {error.name}: pip install "pyface-engine[ray]"')
    from pyface.io.results import OutputError
    from pyface.io.sources import SourceError

    detector = request.make()
    try:
        has_gpus = _connect(options.ray)
        gpus = float(has_gpus and request.options["device"] != "cpu") if options.gpus is None else options.gpus
        folder = _open_folder(wanted, request)
        folder.save(_detect(options, detector, sources, folder, request.options["threads"] or 1, gpus))
    except (SourceError, OutputError, ConnectionError, ValueError) as error:
        fail(error)
    except ray.exceptions.RayError as error:
        fail(f"{str(error).strip().splitlines()[-1]}; repeat the command with --resume to continue", FAILED)
    except KeyboardInterrupt:
        fail("interrupted; repeat the command with --resume to continue", INTERRUPTED)
    finally:
        ray.shutdown()
    _summarise(folder)


def _open_folder(wanted: FolderRequest, detector: DetectorRequest) -> ResultFolder:
    from pyface.distributed import ResultFolder

    return ResultFolder(
        wanted.path, wanted.form, resume=wanted.resume, overwrite=wanted.overwrite, made_by=detector.facts()
    )


def _detect(
    options: ClusterOptions,
    detector: FaceDetector,
    sources: list[Source],
    folder: ResultFolder,
    cpus: int,
    gpus: float,
) -> ray.data.Dataset:
    """The dataset of the results that the folder does not have yet."""
    from pyface.distributed import detect, image_dataset

    images = image_dataset(sources, image=options.image_column, source=options.source_column)
    return detect(
        images.dataset,
        detector,
        image=images.image,
        source=images.source,
        done=folder.done,
        workers=options.workers,
        cpus=cpus,
        gpus=gpus,
    )


def _connect(address: str | None) -> bool:
    """Joins a Ray cluster, or starts one on this machine, prints what it has, and returns whether it has GPUs."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(None if address == "auto" else address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    has = ray.cluster_resources()
    parts = [count(len(ray.nodes()), "node"), *(count(int(has.get(kind, 0)), kind) for kind in ("CPU", "GPU"))]
    print_status(f"pyface: the Ray cluster has {', '.join(parts)}")
    return has.get("GPU", 0) > 0


def _summarise(folder: ResultFolder) -> None:
    """Prints what was written, and exits with the status that says whether all images were read."""
    written, before = folder.written, folder.before
    earlier = f", {before.images:,} done before" if before.images else ""
    print_status(f"{count(written.images, 'image')}, {count(written.faces, 'face')}{earlier}")
    print_status(f"results: {folder.path}")
    if written.failed:
        print_status(f"{count(written.failed, 'image')} could not be read; `error` in their rows gives the reason")
        raise typer.Exit(FAILED)
