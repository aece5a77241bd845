"""List and read files behind a URL (s3://, hf://, https://, ...) through fsspec, with retries."""

import io
from typing import Any

from artefacts.errors import RequestError
from pipeline.sources.storage.retry import FIRST_ATTEMPTS, in_one_line, retry

#: The path's recipe key, unless the caller gives a different one.
KEY = "data.source.path"

#: Protocol -> the package that fsspec needs for it.
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
#: Keys for checksums and versions in fsspec's file information.
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "checksum", "sha256", "blob_id", "oid")


def is_url(path: str) -> bool:
    """Return whether a path is an fsspec URL rather than a local path."""
    return "://" in path


def open_system(url: str, key: str = KEY) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it. ``key`` is the URL's recipe key, for messages.

    Raises:
        RequestError: the protocol is unknown, or needs a package that is not installed.
    """
    import fsspec

    protocol = url.split("://", 1)[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else in_one_line(error)
        raise RequestError(f"{key}: {url}: reading {protocol}:// needs a package: {hint}") from None
    except ValueError as error:
        raise RequestError(f"{key}: {url}: {in_one_line(error)}") from None
    return system, path


def listed(url: str, key: str = KEY) -> tuple[bool, list[dict[str, Any]]]:
    """List the file at a URL, the files below it if it is a folder, or the files that match it if it is a glob.

    Returns:
        Whether the URL is a folder, and fsspec's information about the files.

    Raises:
        RequestError: the protocol is unknown, or the storage cannot be reached.
    """
    system, path = open_system(url, key)

    def ask() -> tuple[bool, list[dict[str, Any]]]:
        if any(mark in path for mark in ("*[" if url.startswith("http") else "*?[")):
            matches = system.glob(path, detail=True)
            return False, [info for info in matches.values() if info["type"] == "file"]
        try:
            info = system.info(path)
        except FileNotFoundError:
            return False, []
        if info["type"] == "file":
            return False, [info]
        return True, list(system.find(path, detail=True).values())

    final = (PermissionError, ImportError, ValueError)
    try:
        return retry(ask, f"{key}: {url}", final, FIRST_ATTEMPTS)
    except final as error:
        raise RequestError(f"{key}: {url}: {in_one_line(error)}") from None


def tag_of(info: dict[str, Any]) -> str | None:
    """Return the storage's checksum or version for a file, or None if it has none."""
    lfs = info.get("lfs")
    if isinstance(lfs, dict) and lfs.get("sha256"):
        return str(lfs["sha256"])
    return next((str(info[key]) for key in _TAGS if info.get(key)), None)


class RemoteFile(io.RawIOBase):
    """A file behind a URL, fetched in blocks. A failed read is retried with a new connection."""

    def __init__(self, url: str, size: int, block: int) -> None:
        self._url = url
        self._size = size
        self._block = block
        self._at = 0
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:  # words: ok
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._at)
        if size <= 0:
            return 0
        block = retry(lambda: self._read(size), self._url)
        buffer[: len(block)] = block
        self._at += len(block)
        return len(block)

    def _read(self, size: int) -> bytes:
        try:
            if self._stream is None:
                system, path = open_system(self._url)
                self._stream = system.open(path, "rb", block_size=self._block)
            if self._stream.tell() != self._at:
                self._stream.seek(self._at)
            block: bytes = self._stream.read(size)
            if not block:
                raise EOFError(f"ends at byte {self._at} of {self._size}")
        except Exception:
            self._disconnect()
            raise
        return block

    def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def close(self) -> None:
        self._disconnect()
        super().close()
