"""The options of `pyface detect`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pyface.cli.detect.cluster import ClusterOptions
from pyface.cli.options import (
    BatchSize,
    DetectorRequest,
    Device,
    MinFace,
    Model,
    Multiscale,
    Precision,
    ScoreThreshold,
    Size,
    Threads,
    Weights,
    parse_size,
)

if TYPE_CHECKING:
    from pyface.redact import Cover

FILES, VIDEOS, PRIVACY, RESULTS = "File selection", "Videos and cameras", "Crops and privacy", "Results"
"""Panels of the help."""

SUFFIXES = {
    ".jsonl": ("jsonl",),
    ".csv": ("csv",),
    ".parquet": ("parquet",),
    ".json": ("coco", "labelstudio", "jsonl"),
}
"""The formats that a suffix of the file of results can stand for."""


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """The detector, and how it runs."""

    model: Model = "s3fd_lite"
    weights: Weights = "default"
    device: Device = "auto"
    score_threshold: ScoreThreshold = None
    min_face: MinFace = None
    size: Size = None
    multiscale: Multiscale = None
    tile: Annotated[
        int | None,
        typer.Option(
            min=64,
            metavar="PIXELS",
            help="Split huge images into square tiles of this size. Not for mtcnn.",
            show_default="never",
        ),
    ] = None
    precision: Precision = "fp32"
    batch_size: BatchSize = 8
    threads: Threads = None
    max_pixels: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Refuse larger images before decoding them.", show_default="134 million"),
    ] = None
    truncated: Annotated[
        Literal["refuse", "accept"], typer.Option(help="What to do with JPEG and PNG files without their end marker.")
    ] = "refuse"

    def request(self) -> DetectorRequest:
        """The detector with these options."""
        options = vars(self) | {"size": parse_size(self.size)}
        if self.max_pixels is None:
            del options["max_pixels"]
        return DetectorRequest(options.pop("model"), options.pop("weights"), options)


@dataclass(frozen=True, kw_only=True)
class SourceRequest:
    """The images and videos to read."""

    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Images, videos, .tar and .zip archives of images, folders, patterns like 'a/*.jpg', URLs "
            "(https://, s3://, gs://, rtsp://), or - for a list of files on standard input.",
        ),
    ] = None
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Include subfolders.")] = False
    from_file: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Read file names from this list, one per line or separated by NUL.",
            rich_help_panel=FILES,
        ),
    ] = None
    glob: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Read only files whose names match PATTERN, such as '*.jpg'.", rich_help_panel=FILES
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Skip files whose names or folders match PATTERN, such as 'thumbs/*'.",
            rich_help_panel=FILES,
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Read only the I-th of N parts of the files; a file's path decides which part it is in.",
            rich_help_panel=FILES,
        ),
    ] = None
    camera: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Read camera N of this machine; 0 is the first.", rich_help_panel=VIDEOS),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CopyRequest:
    """The files to write beside the results."""

    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Save copies of images and videos with the faces drawn, or covered. In a folder that pyface made, a "
            "new run replaces them; other files are never replaced.",
            rich_help_panel=RESULTS,
        ),
    ] = None
    blur: Annotated[
        bool, typer.Option("--blur", help="Blur the faces in the saved copies.", rich_help_panel=PRIVACY)
    ] = False
    pixelate: Annotated[
        bool, typer.Option("--pixelate", help="Pixelate the faces in the saved copies.", rich_help_panel=PRIVACY)
    ] = False
    box: Annotated[
        bool,
        typer.Option("--box", help="Cover the faces in the saved copies with black boxes.", rich_help_panel=PRIVACY),
    ] = False
    strip_gps: Annotated[
        bool,
        typer.Option(
            "--strip-gps",
            help="Remove the GPS position from the metadata of blurred, pixelated or boxed photos.",
            rich_help_panel=PRIVACY,
        ),
    ] = False
    crops: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Save every face, aligned, as an image of 112 x 112 pixels; the results name the files.",
            rich_help_panel=PRIVACY,
        ),
    ] = None
    crop_margin: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="M",
            help="Crop boxes instead of aligning faces, with a margin of M times the box's size on each side.",
            show_default="aligned faces",
            rich_help_panel=PRIVACY,
        ),
    ] = None

    @property
    def covers(self) -> list[Cover]:
        """The ways in which copies cover the faces; more than one is a mistake."""
        ways: list[tuple[Cover, bool]] = [("blur", self.blur), ("pixelate", self.pixelate), ("box", self.box)]
        return [cover for cover, is_given in ways if is_given]

    @property
    def folders(self) -> list[Path]:
        """Where the files go."""
        return [folder for folder in (self.save, self.crops) if folder is not None]

    def facts(self) -> dict[str, Any]:
        """The options that affect the results, by name."""
        return {"crops": self.crops and str(self.crops), "crop_margin": self.crop_margin}


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `pyface detect`."""

    detector: DetectorOptions
    sources: SourceRequest
    every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Process one frame in N of each video.", rich_help_panel=VIDEOS)
    ] = 1
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=100_000,
            metavar="F",
            help="Process at most F frames per second of each video.",
            show_default="all frames",
            rich_help_panel=VIDEOS,
        ),
    ] = None
    track: Annotated[
        bool,
        typer.Option(
            "--track",
            help="Give the faces of one person in a video the same id, in results and saved videos.",
            rich_help_panel=VIDEOS,
        ),
    ] = False
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the results to this file, in the format of its suffix: .jsonl, .csv or .parquet. With --ray: "
            "the folder to write to.",
            rich_help_panel=RESULTS,
        ),
    ] = None
    format: Annotated[
        Literal["jsonl", "csv", "parquet", "coco", "yolo", "labelstudio"] | None,
        typer.Option(
            metavar="FORMAT",
            help="Format of --output: jsonl, csv, parquet, coco (JSON), yolo (a folder of labels) or labelstudio "
            "(tasks with predictions).",
            show_default="by the suffix of FILE",
            rich_help_panel=RESULTS,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue --output FILE (.jsonl or .csv, or the folder of --ray): skip the images that it already "
            "has, and retry those that could not be read. Model, weights and options must be the same as before; "
            "FILE.run.json records them.",
            rich_help_panel=RESULTS,
        ),
    ] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --output FILE if it exists.", rich_help_panel=RESULTS)
    ] = False
    copies: CopyRequest
    cluster: ClusterOptions

    @property
    def output_file(self) -> Path | None:
        """The file of results, unless a cluster writes them."""
        return None if self.output is None else Path(self.output)

    @property
    def output_format(self) -> str | None:
        """The format of the results, None if neither the option nor the file's suffix gives one."""
        return self.format or (self.suffix_formats[0] if len(self.suffix_formats) == 1 else None)

    @property
    def suffix_formats(self) -> tuple[str, ...]:
        """The formats that the file's suffix can stand for; none for an unknown suffix, which any format may use."""
        return () if self.output_file is None else SUFFIXES.get(self.output_file.suffix.lower(), ())

    @property
    def is_resumable(self) -> bool:
        """Whether a later run can continue the file of results."""
        return self.output is not None and self.output_format in ("jsonl", "csv")

    @property
    def continues(self) -> bool:
        """Whether there are results that this run continues; its copies may then replace those of the earlier run."""
        file = self.output_file
        return self.resume and file is not None and file.is_file() and file.stat().st_size > 0

    def facts(self) -> dict[str, Any]:
        """The options that affect the results, by name."""
        frames = {"every": self.every, "fps": self.fps, "track": self.track}
        return self.detector.request().facts() | frames | self.copies.facts()
