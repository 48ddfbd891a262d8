"""The service's HTTP interface: `/detect`, `/health`, `/metrics`, the documentation at `/docs` and the page at `/`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from pyface import __version__
from pyface.detector import FaceDetector
from pyface.serve.batching import Batcher, Found
from pyface.serve.limits import Limits, Overloaded
from pyface.serve.uploads import BadUpload, body_size, is_form, read_uploads

# The page loads nothing from elsewhere and sends nothing elsewhere.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE = {"": "text/html", "style.css": "text/css", "script.js": "text/javascript"}


class Face(BaseModel):
    """One face: x1, y1, x2, y2 in pixels of the upright image, its score, and its eyes, nose and mouth corners."""

    box: tuple[float, float, float, float]
    score: float
    landmarks: list[tuple[float, float]] | None


class Line(BaseModel):
    """The result for one image, as in the lines of `pyface detect`; `source` is the file's name in the form."""

    source: str | None
    width: int | None
    height: int | None
    faces: list[Face]
    error: str | None


class Refusal(BaseModel):
    """Why a request was refused, in one sentence."""

    error: str


class Health(BaseModel):
    """The state of the service, and what it runs."""

    status: str
    version: str
    model: str
    device: str
    score_threshold: float


_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"file": {"type": "array", "items": _FILE}}, "required": ["file"]}
_CONTENT = {"application/octet-stream": {"schema": _FILE}, "multipart/form-data": {"schema": _FORM}}
_BODY = {"requestBody": {"required": True, "content": _CONTENT}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": Line | list[Line], "description": "A form returns a list, with one result per file."},
    400: {"model": Refusal, "description": "The form is damaged, has no file, or is incomplete."},
    408: {"model": Refusal, "description": "The upload took too long."},
    413: {"model": Refusal, "description": "The request is too large."},
    422: {"model": Line | list[Line] | Refusal, "description": "No image could be read, or a parameter is wrong."},
    500: {"model": Line | list[Line], "description": "The detector failed."},
    503: {"model": Refusal, "description": "The service is busy; the header Retry-After says when to try again."},
}


def make_app(detector: FaceDetector, name: str, limits: Limits | None = None) -> FastAPI:
    """Makes the service as an ASGI application.

    Args:
        detector: Finds the faces. The service sets its `score_threshold`, so it needs a detector of its own.
        name: The model's name, which `/health` reports.
        limits: What the service accepts; None: the defaults.
    """
    batcher = Batcher(detector, limits or Limits())
    score_threshold = detector.score_threshold

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    app = FastAPIOffline(
        redoc_url=None,
        title="pyface",
        summary="Finds faces in images.",
        version=__version__,
        lifespan=lifespan,
    )

    @app.post("/detect", responses=_ANSWERS, openapi_extra=_BODY)
    async def detect(
        request: Request,
        score_threshold: Annotated[
            float | None, Query(ge=0, le=1, description="Return faces with a score above this.")
        ] = None,
    ) -> Response:
        """Finds the faces in an image (the body), or in each file of a multipart form.

        The image is JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PNM. If some files of a form cannot be read,
        their results say why; the status is 422 if none can.
        """
        start = time.perf_counter()
        response = await _detect(batcher, request, score_threshold)
        batcher.metrics.requests.labels(response.status_code).inc()
        batcher.metrics.request_seconds.observe(time.perf_counter() - start)
        return response

    @app.get("/health", response_model=Health, responses={503: {"model": Health}})
    def health() -> Response:
        """Reports whether the detector works; the status is 503 if it has failed on several images in a row."""
        content = Health(
            status="ok" if batcher.works else "the detector fails; see the service's log",
            version=__version__,
            model=name,
            device=str(detector.device),
            score_threshold=score_threshold,
        )
        return _json(content.model_dump(), 200 if batcher.works else 503)

    @app.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Returns the metrics in Prometheus's text format."""
        return Response(generate_latest(batcher.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_exception_handler(RequestValidationError, _say_which_parameter)
    app.add_exception_handler(HTTPException, _say_what_is_wrong)
    _add_page(app)
    return app


async def _detect(batcher: Batcher, request: Request, score_threshold: float | None) -> Response:
    """Handles a request to `/detect`."""
    deadline = asyncio.get_running_loop().time() + batcher.limits.deadline
    try:
        for parameter in request.query_params:
            if parameter != "score_threshold":
                raise BadUpload(
                    422,
                    f"the only parameter is score_threshold, got {parameter[:100]}; correct its name or leave it out",
                )
        with batcher.room.hold(1, body_size(request, batcher.limits)):
            uploads = await read_uploads(request, batcher.limits, deadline)
        found = await batcher.detect(uploads, score_threshold, deadline)
    except BadUpload as error:
        return _json({"error": str(error)}, error.status)
    except Overloaded:
        seconds = batcher.retry_after()
        response = _json({"error": f"the service is busy; try again in {seconds} s"}, 503)
        response.headers["Retry-After"] = str(seconds)
        return response
    lines = [one.line for one in found]
    return _json(lines if is_form(request) else lines[0], _status(found))


def _status(found: Sequence[Found]) -> int:
    results = {one.result for one in found}
    return 200 if "read" in results else 500 if "failed" in results else 422


def _json(content: Any, status: int = 200) -> Response:
    # By the function that writes the lines of `pyface detect`, so that the text is the same.
    return Response(json.dumps(content, allow_nan=False), status, {"Cache-Control": "no-store"}, "application/json")


async def _say_which_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = error.errors()[0]
    return _json({"error": f"score_threshold must be from 0 to 1, got {wrong['input']}"[:300]}, 422)


async def _say_what_is_wrong(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json({"error": f"{error.detail}; see /docs for what the service offers"}, error.status_code)
    response.headers.update(error.headers or {})
    return response


def _add_page(app: FastAPI) -> None:
    """Adds the page, whose files are read once, here."""
    folder = resources.files("pyface.serve") / "page"
    for name, kind in _PAGE.items():
        content = (folder / (name or "index.html")).read_bytes()
        headers = {"Content-Security-Policy": _PAGE_POLICY, "X-Content-Type-Options": "nosniff"}

        def send(content: bytes = content, kind: str = kind, headers: dict[str, str] = headers) -> Response:
            return Response(content, headers=headers, media_type=kind)

        app.add_api_route(f"/{name}", send, include_in_schema=False)
