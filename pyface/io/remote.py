"""Files at URLs: https://, s3://, gs:// and the others that fsspec reads (the extra `remote`)."""

import io
import re
from typing import Any, BinaryIO

PATIENCE = 15.0
"""Seconds that a server may take to answer, or to send more."""

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "udp", "srt")

_WEB_SCHEMES = ("http", "https")
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}


class RemoteError(OSError):
    """A file at a URL cannot be read; the text is the reason without the URL."""


def scheme_of(name: str) -> str:
    """Returns the scheme of a URL, "" for file names.

    Example:
        >>> scheme_of("S3://bucket/a.jpg"), scheme_of("C:/a.jpg")
        ('s3', '')
    """
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", name, re.IGNORECASE)
    return scheme[1].lower() if scheme else ""


def is_web(name: str) -> bool:
    """Tells whether a name is an http or https URL; without a pattern, such a URL is a single file."""
    return scheme_of(name) in _WEB_SCHEMES


def open_remote(address: str, *, seekable: bool = False) -> BinaryIO:
    """Opens the file at a URL for reading; any failure, then or later, is a `RemoteError`.

    Args:
        address: The URL.
        seekable: Whether the file must be seekable; a web server must then be able to send parts of it. False: it is
            streamed.

    Raises:
        RemoteError: There is no such file, no answer, or no package for this kind of URL.
    """
    # Given any size, fsspec does not ask the server for it, which saves a request or a time-out.
    options = {"block_size": 0, "size": 1} if is_web(address) and not seekable else {}
    try:
        filesystem, path = _filesystem(address)
        file = filesystem.open(path, "rb", **options)
    except Exception as error:  # each backend raises its own kinds
        raise RemoteError(remote_reason(error)) from error
    if seekable and is_web(address):
        try:
            file.seek(1)
            file.read(1)
            file.seek(0)
        except (OSError, ValueError) as error:
            raise RemoteError("its server does not send parts of files; download it first") from error
    return io.BufferedReader(_RemoteFile(file))


class _RemoteFile(io.RawIOBase):
    """A file of fsspec, whose backends raise errors of many kinds."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise RemoteError(remote_reason(error)) from error
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return int(self._file.seek(offset, whence))
        except Exception as error:
            raise RemoteError(remote_reason(error)) from error

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def list_remote(address: str, *, recursive: bool) -> list[str]:
    """Returns the sorted URLs of the files in a folder, or of those that match a pattern; for a file, its own.

    Raises:
        RemoteError: The server does not list its files or does not answer, or no installed package reads its URLs.
    """
    try:
        filesystem, path = _filesystem(address)
        if "*" in path:
            found = filesystem.glob(path, detail=True)
            names = [name for name, facts in found.items() if facts["type"] == "file"]
        else:
            names = filesystem.find(path, maxdepth=None if recursive else 1)
            if names == [path]:
                return [address]
    except Exception as error:  # as above
        raise RemoteError(remote_reason(error)) from error
    return sorted(filesystem.unstrip_protocol(name) for name in names)


def remote_reason(error: Exception) -> str:
    """Returns in words why a URL cannot be read."""
    if isinstance(error, RemoteError):
        return str(error)
    if isinstance(error, FileNotFoundError):  # fsspec reports a server that does not answer as a missing file too
        return remote_reason(error.__cause__) if isinstance(error.__cause__, Exception) else "there is no such file"
    if isinstance(error, PermissionError):
        return "access is denied; check the credentials"
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:g} seconds"
    status = getattr(error, "status", None)
    if status == 404:
        return "there is no such file"
    if isinstance(status, int):
        return f"the server answered {status} {getattr(error, 'message', '')}".rstrip()
    return next((line.strip() for line in str(error).splitlines()), type(error).__name__)


def _filesystem(address: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    scheme = scheme_of(address)
    try:
        import fsspec

        return fsspec.core.url_to_fs(address, **_time_limits(scheme))
    except ImportError as error:
        package = '"pyface-engine[remote]"' if scheme in _WEB_SCHEMES else _PACKAGES.get(scheme)
        install = str(error) if package is None else f"pip install {package}"
        raise RemoteError(f"{scheme}:// URLs need another package: {install}") from error
    except ValueError as error:
        raise RemoteError(f"fsspec does not support {scheme}:// URLs ({error})") from error


def _time_limits(scheme: str) -> dict[str, Any]:
    """The options that make a backend give up in time; backends without such options have limits of their own."""
    if scheme in _WEB_SCHEMES:
        import aiohttp

        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=PATIENCE, sock_read=PATIENCE)}}
    if scheme in ("s3", "s3a"):
        return {"config_kwargs": {"connect_timeout": PATIENCE, "read_timeout": PATIENCE}}
    if scheme in ("gs", "gcs"):
        return {"requests_timeout": PATIENCE}
    return {}
