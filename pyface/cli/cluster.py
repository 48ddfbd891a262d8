"""`pyface detect --ray`: the same detection on the machines of a Ray cluster."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from pyface.cli.console import FAILED, INTERRUPTED, count, fail, print_status
from pyface.cli.options import DetectorRequest

if TYPE_CHECKING:
    from pyface.distributed import ResultFolder


@dataclass(frozen=True)
class ClusterRequest:
    """The options of `pyface detect` that are for Ray.

    Attributes:
        address: Of the cluster; "auto": the one of this machine, or a new one on it.
        workers: Number of detectors; None: as many as the cluster has room for.
        gpus: GPUs per detector; None: one if the cluster has any and the device is not the CPU.
        rows: Format of the results.
        image_column, source_column: Columns of parquet files.
    """

    address: str
    workers: int | None
    gpus: float | None
    rows: str
    image_column: str
    source_column: str


@dataclass(frozen=True)
class OutputRequest:
    """The folder of results that a call of `pyface detect --ray` asks for; the attributes are its options."""

    folder: str
    resume: bool
    overwrite: bool


def detect_on_cluster(
    request: ClusterRequest, detector: DetectorRequest, sources: list[str], recursive: bool, output: OutputRequest
) -> None:
    """Runs a detector on the images of a Ray cluster, and ends with the status of the command."""
    try:
        import ray

        from pyface.distributed import ResultFolder, detect, read_images
    except ImportError as error:
        fail(f'--ray needs {error.name}: pip install "pyface-engine[ray]"')
    from pyface.io.results import OutputError
    from pyface.io.sources import SourceError

    made = detector.make()
    try:
        has_gpus = _connect(request.address)
        images = read_images(sources, recursive=recursive, image=request.image_column, source=request.source_column)
        folder = ResultFolder(
            output.folder,
            request.rows,  # type: ignore[arg-type]
            resume=output.resume,
            overwrite=output.overwrite,
            made_by=detector.facts(),
        )
        results = detect(
            images.dataset,
            made,
            image=images.image,
            source=images.source,
            filesystem=images.filesystem,
            done=folder.done,
            workers=request.workers,
            cpus=detector.options["threads"] or 1,
            gpus=float(has_gpus and detector.options["device"] != "cpu") if request.gpus is None else request.gpus,
        )
        folder.save(results)
    except (SourceError, OutputError, ConnectionError, ValueError) as error:
        fail(error)
    except ray.exceptions.RayError as error:
        fail(f"{str(error).strip().splitlines()[-1]}; the same command with --resume continues", FAILED)
    except KeyboardInterrupt:
        fail("interrupted; the same command with --resume continues", INTERRUPTED)
    finally:
        ray.shutdown()
    _summarise(folder)


def _connect(address: str) -> bool:
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
    """Prints what was written, and ends with the status that says whether all images were read."""
    written, before = folder.written, folder.before
    earlier = f", {before.images:,} done before" if before.images else ""
    print_status(f"{count(written.images, 'image')}, {count(written.faces, 'face')}{earlier}")
    print_status(f"results: {folder.path}")
    failed = written.failed + before.failed
    if failed:
        print_status(f"{count(failed, 'image')} could not be read; `error` in their rows gives the reason")
        raise typer.Exit(FAILED)
