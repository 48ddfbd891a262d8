"""Reads the images of a request into memory. No disk, path or URL is involved."""

import asyncio
import sys
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from pyface.serve.batching import Upload
from pyface.serve.limits import Limits

_MAX_FIELDS = 64  # form fields that are not files; the first one is refused


class BadUpload(Exception):
    """A request cannot be accepted; the message says why, and `status` is the HTTP status of the response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _MemoryParser(MultiPartParser):
    spool_max_size = sys.maxsize  # uploads are limited, and never go to a temporary file


def body_size(request: Request, limits: Limits) -> int:
    """Returns the size of a request's body, or the largest size if the request does not state it.

    Raises:
        BadUpload: The body is too large.
    """
    size = int(request.headers.get("content-length", limits.request_bytes))
    if size > limits.request_bytes:
        raise _too_large(limits)
    return size


async def read_uploads(request: Request, limits: Limits, deadline: float) -> list[Upload]:
    """Reads the files of a multipart form, or the whole body as one file.

    Args:
        request: The request whose body is read.
        limits: How large the body may be, and how many files there may be.
        deadline: When the body must be complete, in the event loop's time.

    Raises:
        BadUpload: The body is too large, too slow or incomplete, or the form is damaged or without files.
    """
    chunks = _limited(request, limits)
    try:
        async with asyncio.timeout_at(deadline):
            if is_form(request):
                return await _read_form(request, chunks, limits)
            return [Upload(None, b"".join([chunk async for chunk in chunks]))]
    except TimeoutError:
        raise BadUpload(408, f"the upload took longer than the {limits.deadline:g} s that a request may take") from None
    except ClientDisconnect:
        raise BadUpload(400, "the connection was closed before the upload was complete") from None


def is_form(request: Request) -> bool:
    """Whether the body is a multipart form; any other body counts as one file, whatever its content type."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.request_bytes:
            raise _too_large(limits)
        yield chunk


async def _read_form(request: Request, chunks: AsyncGenerator[bytes, None], limits: Limits) -> list[Upload]:
    parser = _MemoryParser(request.headers, chunks, max_files=limits.queue, max_fields=_MAX_FIELDS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadUpload(400, f"the multipart form cannot be read: {error.message.rstrip('.')}") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    fields = [name for name, value in form.multi_items() if isinstance(value, str) and value]
    if not files:
        raise BadUpload(400, "the form has no file; send images as files: curl -F file=@photo.jpg")
    if fields:  # empty ones are those that browsers send for inputs without a file
        raise BadUpload(
            422,
            f"all parts of the form must be files, got the field {fields[0][:100]}; send images as in curl -F "
            "file=@photo.jpg, and the threshold in the URL: /detect?score_threshold=0.5",
        )
    return [Upload(file.filename, await file.read()) for file in files]


def _too_large(limits: Limits) -> BadUpload:
    return BadUpload(
        413, f"the request is larger than {limits.request_bytes} bytes; send fewer or smaller images per request"
    )
