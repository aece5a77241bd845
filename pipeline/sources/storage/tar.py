"""Read the members of a tar archive in order, starting at any header. Nothing is written to disk.

If any header but the first is damaged, the standard library treats it as the end of the archive, and silently skips the
rest. This module raises an error instead.
"""

import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from artefacts.errors import spelled
from pipeline.sources.base import MOST_BYTES

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
#: Maximum bytes in a name or extended header.
_MOST_HEADER_BYTES = 1 << 20


class Damaged(Exception):
    """The archive is truncated or damaged, or is not a tar archive."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: a safe relative path, without root or parent folders.
        offset: byte offset of the member's first header in the archive.
        end: byte offset of the next member.
        is_file: whether it is a regular file, not a folder, link or device.
        is_folder: whether it is a folder.
        content: content of a regular file, or None if it was not read or is too large.
    """

    name: str
    offset: int
    end: int
    is_file: bool
    is_folder: bool
    content: bytes | None


class _Extended(NamedTuple):
    """The next member's path and size from extended headers. Each is None if the headers don't specify it."""

    path: str | None = None
    size: int | None = None


def members(stream: IO[bytes], at: int = 0, stop: int | None = None, contents: bool = True) -> Iterator[Member]:
    """Yield the members whose first header begins in the byte range [at, stop).

    Args:
        stream: the archive, positioned at byte ``at``. It must be seekable unless ``contents`` is true.
        at: first byte of a header.
        stop: byte to stop at, or None for the end of the archive.
        contents: read the members' content as well as their headers.

    Raises:
        Damaged: the archive ends early, even between two members, or has an unreadable header. All members before that
            point are yielded first.
        OSError, EOFError, zlib.error, lzma.LZMAError: the stream is damaged.
    """
    while stop is None or at < stop:
        begin = at
        header, extended, at = _header(stream, at)
        if header is None:
            return
        size = _size_of_other(header)
        if header.isreg():
            size = header.size if extended.size is None else extended.size
        end = at + -(-size // _BLOCK) * _BLOCK
        content = None
        if contents and header.isreg() and size <= MOST_BYTES:
            content = _exactly(stream, end - at, at)[:size]
        else:
            _skip(stream, end, at, seek=not contents)
        at = end
        name = plain(header.name if extended.path is None else extended.path)
        yield Member(name, begin, end, header.isreg(), header.isdir(), content)


def plain(name: str) -> str:
    """Return a member's name as a safe relative path. Invalid UTF-8 is escaped."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return spelled("/".join(parts))


def _header(stream: IO[bytes], at: int) -> tuple[tarfile.TarInfo | None, _Extended, int]:
    """Return the next member's header (None at the end), its extended headers, and the offset after all headers."""
    extended = _Extended()
    while True:
        block = stream.read(_BLOCK)
        if not block and not at:
            raise Damaged("it is empty")
        if not block:
            raise Damaged(f"byte {at}: ends without an end-of-archive marker")
        if block == _ZEROS:
            return None, extended, at
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise Damaged(f"byte {at}: {error}") from None
        at += _BLOCK
        if header.type not in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            return header, extended, at
        if header.size > _MOST_HEADER_BYTES:
            raise Damaged(f"byte {at}: a name of {header.size} bytes")
        padded = -(-header.size // _BLOCK) * _BLOCK
        value = _exactly(stream, padded, at)[: header.size]
        at += padded
        if header.type == tarfile.GNUTYPE_LONGNAME:
            extended = extended._replace(path=value.rstrip(b"\0").decode("utf-8", "surrogateescape"))
        elif header.type == tarfile.XHDTYPE:
            extended = _records(value, at, extended)


def _records(value: bytes, at: int, extended: _Extended) -> _Extended:
    """Update ``extended`` from a pax header, whose records have the form "length key=value" and end with a newline."""
    while value:
        try:
            length = int(value[: value.index(b" ")])
            key, _, content = value[value.index(b" ") + 1 : length - 1].partition(b"=")
            if key == b"path":
                extended = extended._replace(path=content.decode("utf-8", "surrogateescape"))
            elif key == b"size":
                extended = extended._replace(size=int(content))
        except ValueError:
            length = 0
        if length <= 0:
            raise Damaged(f"byte {at}: an unreadable extended header")
        value = value[length:]
    return extended


def _size_of_other(header: tarfile.TarInfo) -> int:
    """Return the number of bytes after the header of a member that is not a regular file.

    Some programs write a size in the header of a link, although a link has no content.
    """
    return 0 if header.islnk() or header.issym() or header.isdir() or header.isdev() else header.size


def _exactly(stream: IO[bytes], size: int, at: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise Damaged(f"byte {at}: ends within a member")
    return content


def _skip(stream: IO[bytes], end: int, at: int, seek: bool) -> None:
    if seek:
        # Seeking past the end is not an error, so read the last byte to detect a truncated archive.
        if end > at:
            stream.seek(end - 1)
            _exactly(stream, 1, at)
        return
    while at < end:
        at += len(_exactly(stream, min(end - at, _MOST_HEADER_BYTES), at))
