"""One detector per Ray actor: a dataset of images in, a dataset of results out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pyface.detector import FaceDetector, Outcome
from pyface.distributed.results import COLUMNS, fingerprints, is_in
from pyface.io.results import failed
from pyface.resources import keep_freed_memory

IMAGES_PER_CALL = 64
"""Images that an actor takes at once: eight batches, so that decoding and detection overlap."""


def detect(
    dataset: ray.data.Dataset,
    model: str | FaceDetector = "s3fd_lite",
    *,
    image: str = "bytes",
    source: str = "source",
    done: np.ndarray | None = None,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
    **options: Any,
) -> ray.data.Dataset:
    """Finds the faces in a dataset of images, with one detector per Ray actor.

    Like all of Ray Data, this is lazy: the work begins when the result is written or iterated over. An actor that dies
    is started again, and so is the work that it had not finished. Every node needs pyface installed.

    Args:
        dataset: One row per image.
        model: The name of a detector, or a detector, which is copied to the actors with its weights.
        image: The column with the images: contents of image files (binary), or paths and URLs (string).
        source: The column with their names (string), which must be unique.
        done: Sorted fingerprints of images to leave out, such as `ResultFolder.done`.
        workers: Number of actors; None: as many as the cluster's CPUs or GPUs allow.
        cpus: Number of CPUs per actor, and of threads of its detector.
        gpus: GPUs per actor; a fraction shares a GPU between several actors.
        options: Options of `FaceDetector`.

    Returns:
        One row per image in the order of arrival: `source`, `width`, `height`, `faces` and `error`, as
        `Detections.to_dict` names them.

    Raises:
        TypeError: The model is a detector, and options are given too.
        ValueError: A column does not exist, or the cluster lacks the CPUs or GPUs for one actor.
    """
    if not isinstance(model, str) and options:
        raise TypeError(f"options must be left out when model is a detector, got {', '.join(options)}")
    schema = dataset.schema(fetch_if_missing=False)
    for role, name in (("image", image), ("source", source)):
        if schema is not None and name not in schema.names:
            raise ValueError(f"{role} must be a column of the dataset, got {name!r}; choose one of {schema.names}")
    detector = FaceDetector(model, **options) if isinstance(model, str) else model
    arguments = (ray.put(detector), None if done is None else ray.put(done), image, source)
    pool = ray.data.ActorPoolStrategy(size=workers or count_workers(cpus, gpus))
    return dataset.map_batches(
        Worker,
        fn_constructor_args=arguments,
        batch_size=IMAGES_PER_CALL,
        batch_format="pyarrow",
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus,
    )


def count_workers(cpus: float, gpus: float) -> int:
    """Returns how many actors the cluster has room for.

    Raises:
        ValueError: It has room for none.
    """
    resources = ray.cluster_resources()
    number = min(int(resources.get(kind, 0) / each) for kind, each in (("CPU", cpus), ("GPU", gpus)) if each)
    if number < 1:
        has = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
        raise ValueError(f"a worker must fit into the cluster, which has {has}, got {cpus:g} CPUs and {gpus:g} GPUs")
    return number


class Worker:
    """A detector in a Ray actor.

    Args:
        detector: Reference to the detector.
        done: Reference to the fingerprints of images to leave out.
        image, source: See `detect`.
    """

    def __init__(self, detector: ray.ObjectRef, done: ray.ObjectRef | None, image: str, source: str) -> None:
        keep_freed_memory()
        self.detector: FaceDetector = ray.get(detector)
        self.done = fingerprints([]) if done is None else ray.get(done)
        self.image, self.source = image, source

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Returns the results of a batch of images, without those that are done."""
        outcomes = self.detector.stream(self._remaining(batch), copy=False)
        return pa.Table.from_pylist([result(outcome) for outcome in outcomes], schema=COLUMNS)

    def _remaining(self, batch: pa.Table) -> Iterator[tuple[str, Any]]:
        names = [str(name) for name in batch[self.source].to_pylist()]
        for name, image, skip in zip(names, batch[self.image].to_pylist(), is_in(names, self.done), strict=True):
            if not skip:
                yield name, image if isinstance(image, str) else NamedBytes(name, image or b"")


class NamedBytes(io.BytesIO):
    """The content of an image file, whose name appears in errors."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(content)
        self.name = name


def result(outcome: Outcome) -> dict[str, Any]:
    """The row of an image, with its faces or the reason why there are none."""
    if outcome.detections is None:
        return failed(outcome.source, str(outcome.error))
    return outcome.detections.to_dict()
