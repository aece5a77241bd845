"""Read the members of a .7z archive in order and in bounded memory. Needs the optional package py7zr."""

import io
import queue
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import IO, Any, NamedTuple, cast

from artefacts.errors import RequestError, StorageError
from pipeline.sources.base import MOST_BYTES
from pipeline.sources.storage.tar import plain

#: Approximate limit on the total size of decompressed members in the queue, in bytes.
_WAITING_BYTES = 16 << 20
#: Number of archive bytes to feed to the decompressor at a time.
_FED_BYTES = 64 << 10


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: a safe relative path.
        position: number of the member, from 0.
        is_file: whether it is a regular file of at most ``MOST_BYTES``.
        too_large: whether it is a larger regular file.
        content: the content if ``is_file``, otherwise empty.
        read: number of archive bytes read so far.
    """

    name: str
    position: int
    is_file: bool
    too_large: bool
    content: bytes
    read: int


class Damaged(Exception):
    """The archive is truncated, encrypted, or not a .7z archive."""


class _Stopped(Exception):
    """Raised in the decompressing thread when no more members are needed."""


class Members:
    """A context manager that iterates over an archive's members. On exit, it stops the decompressing thread."""

    def __init__(self, stream: IO[bytes], path: str) -> None:
        try:
            import py7zr
        except ImportError:
            raise RequestError(f"{path}: reading .7z needs a package: pip install py7zr") from None
        self._py7zr = py7zr
        self._stream = _Metered(stream)
        self._room = threading.Condition()
        self._waiting: queue.SimpleQueue[Member | BaseException | None] = queue.SimpleQueue()
        self._bytes = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._extract, daemon=True)

    def __enter__(self) -> Iterator[Member]:
        self._thread.start()
        return self._members()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._room:
            self._stopped = True
            self._room.notify_all()
        self._thread.join()

    def _members(self) -> Iterator[Member]:
        while (member := self._waiting.get()) is not None:
            if isinstance(member, (RequestError, StorageError)):
                raise member
            if isinstance(member, BaseException):
                raise Damaged(" ".join(str(member).split()) or type(member).__name__) from None
            with self._room:
                self._bytes -= len(member.content)
                self._room.notify_all()
            yield member

    def put(self, member: Member) -> None:
        """Add a member to the queue once there is room for it."""
        with self._room:
            while self._bytes >= _WAITING_BYTES and not self._stopped:
                self._room.wait()
            if self._stopped:
                raise _Stopped
            self._bytes += len(member.content)
        self._waiting.put(member)

    def _extract(self) -> None:
        end: BaseException | None = None
        try:
            with self._py7zr.SevenZipFile(cast(IO[bytes], self._stream)) as archive:
                archive.extractall(factory=_writers(self, _by_name(archive), self._stream))
        except _Stopped:
            pass
        except Exception as error:
            # Damage can raise anything: py7zr, lzma and zlib errors, AssertionError, struct.error, ...
            end = error
        self._waiting.put(end)


class _Metered(io.RawIOBase):
    """The archive stream that py7zr reads. It limits py7zr's memory use.

    py7zr reads a block for every member, even if its decompressor still has unused input. With many small members, all
    of the archive would end up in memory. So while there is unused input, each read returns only a single byte.

    Attributes:
        folder: py7zr's description of what is being decompressed, or None while the archive's headers are being read.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.folder: Any = None

    def read(self, size: int = -1) -> bytes:
        if self.folder is not None and size > 0:
            size = min(size, _FED_BYTES if self._is_used_up() else 1)
        return self._stream.read(size)

    def _is_used_up(self) -> bool:
        chain = getattr(getattr(self.folder, "decompressor", None), "chain", None)
        first = chain[0] if chain else None
        return bool(getattr(getattr(first, "_decompressor", first), "needs_input", True))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:  # words: ok
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _writers(members: Members, known: dict[str, tuple[int, Any, Any]], stream: _Metered) -> Any:
    """Return the factory from which py7zr gets a writer for each member."""
    from py7zr.io import Py7zIO, WriterFactory

    class Writer(Py7zIO):
        def __init__(self, name: str, position: int, info: Any) -> None:
            self._name = name
            self._position = position
            self._info = info
            self._too_large = not info.is_symlink and info.uncompressed > MOST_BYTES
            self._is_file = not info.is_symlink and not self._too_large
            self._blocks: list[bytes] = []

        def write(self, s: bytes | bytearray) -> int:
            if self._is_file:
                self._blocks.append(bytes(s))
            return len(s)

        def read(self, size: int | None = None) -> bytes:
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def flush(self) -> None:
            pass

        def size(self) -> int:
            return sum(map(len, self._blocks))

        def close(self) -> None:
            content = b"".join(self._blocks)
            self._blocks.clear()
            # py7zr also closes damaged members, and checks them only afterward.
            is_intact = len(content) == self._info.uncompressed and self._info.crc32 in (None, zlib.crc32(content))
            if is_intact or not self._is_file:
                member = Member(self._name, self._position, self._is_file, self._too_large, content, stream.tell())
                members.put(member)

    class Writers(WriterFactory):
        def create(self, filename: str) -> Py7zIO:
            position, info, stream.folder = known[plain(filename)]
            return Writer(plain(info.filename), position, info)

    return Writers()


def _by_name(archive: Any) -> dict[str, tuple[int, Any, Any]]:
    """Return a map from the name that py7zr uses for a member to its position, description and folder.

    py7zr adds numbers to repeated names. A "folder" is a group of members that are compressed together.
    """
    members: dict[str, tuple[int, Any, Any]] = {}
    seen: Counter[str] = Counter()
    for position, (info, file) in enumerate(zip(archive.list(), archive.files, strict=True)):
        repeated = seen[info.filename]
        name = f"{info.filename}_{repeated - 1}" if repeated else info.filename
        seen[info.filename] += 1
        members[plain(name)] = (position, info, file.folder)
    return members
