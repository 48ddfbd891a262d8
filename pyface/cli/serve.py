"""`pyface serve`: the detector as a web service."""

from __future__ import annotations

import math
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pyface.cli.console import fail, print_status
from pyface.cli.options import (
    BatchSize,
    DetectorRequest,
    Device,
    MinFace,
    Model,
    Precision,
    Size,
    Weights,
    parse_size,
    takes_options,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pyface.detector import FaceDetector

MAX_PIXELS = 2**26
_MEBIBYTE = 2**20
_GRACE = 5  # seconds beyond the deadline that a stop may take


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """The detector, and how it runs."""

    model: Model = "s3fd_lite"
    weights: Weights = "default"
    device: Device = "auto"
    score_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Return faces with a score above this, unless a request has its own threshold.",
            show_default="the model's own",
        ),
    ] = None
    min_face: MinFace = None
    size: Size = None
    precision: Precision = "fp32"
    batch_size: BatchSize = 8
    max_pixels: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Refuse larger images before decoding them.", show_default="67 million"),
    ] = MAX_PIXELS

    def make(self) -> FaceDetector:
        """Makes the detector, or ends the command with the reason why not."""
        options = vars(self) | {"size": parse_size(self.size)}
        return DetectorRequest(options.pop("model"), options.pop("weights"), options).make()


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `pyface serve`."""

    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on; 0.0.0.0 for all addresses of this machine (there is no authentication)."
        ),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8000
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="Path under which a proxy offers the service.", show_default="/")
    ] = ""
    detector: DetectorOptions
    queue: Annotated[int, typer.Option(min=1, metavar="N", help="Largest number of images in the service at once.")] = (
        64
    )
    deadline: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Abort requests after this time.")] = 30.0
    max_request: Annotated[int, typer.Option(min=1, metavar="MIB", help="Refuse larger requests.")] = 32


@takes_options
def serve(request: Request) -> None:
    """Runs a detector as a web service, with a page at / for trying it out.

    POST /detect takes an image, or a form with several, and returns the JSON of `pyface detect`. GET /docs describes
    the interface; /health and /metrics are for monitoring. Requests from different clients share batches. When the
    queue is full, the response is 503 with Retry-After. SIGTERM or Ctrl-C stops the service once accepted requests are
    finished.

    Examples:

    ```
    pyface serve                                          # then open http://127.0.0.1:8000
    curl --data-binary @photo.jpg http://127.0.0.1:8000/detect
    curl -F file=@a.jpg -F file=@b.jpg http://127.0.0.1:8000/detect
    pyface serve --device cuda --batch-size 32 --queue 256
    ```
    """
    run_service(request)


def run_service(request: Request) -> None:
    """Runs the service until SIGTERM or Ctrl-C."""
    from pyface.resources import keep_freed_memory

    keep_freed_memory()
    # OpenCV checks sizes as well, which protects against files whose real size differs from the one in the header that
    # pyface reads. It takes its limit when it is loaded.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(request.detector.max_pixels)
    app = _make_app(request)
    listener = _listen(request.host, request.port)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    print_status(f"pyface: serving {request.detector.model} on http://{address}:{port}; Ctrl-C stops the service")
    _run(app, listener, request)


def _make_app(request: Request) -> FastAPI:
    detector = request.detector.make()
    try:
        from pyface.serve.app import make_app
        from pyface.serve.limits import Limits
    except ImportError as error:
        fail(f'pyface serve needs more packages ({error}): pip install "pyface-engine[serve]"')
    request_bytes = request.max_request * _MEBIBYTE
    limits = Limits(request.queue, request.deadline, request_bytes)
    return make_app(detector, request.detector.model, limits)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
        # Connections inherit this. Without it, each response waits 40 ms for the client to confirm its first packet:
        # asyncio sets it only for sockets that were made with the number of the protocol.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        # The text of `create_server` repeats the address; the numbers of `getaddrinfo` are not those of errno.
        number = None if isinstance(error, socket.gaierror) else error.errno
        reason = error.strerror if number is None else os.strerror(number)
        fail(f"cannot listen on {host}, port {port} ({reason}); choose others with --host and --port")


def _run(app: FastAPI, listener: socket.socket, request: Request) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        root_path=request.root_path,
        timeout_graceful_shutdown=math.ceil(request.deadline) + _GRACE,
    )
    # After a graceful stop uvicorn raises the signal again. The stop was asked for, so it is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])
