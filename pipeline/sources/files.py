"""Source files, here or behind a URL: found below a path, fingerprinted, opened whatever their compression."""

import glob
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from configs.errors import STORAGE_FAULTS, RequestError, StorageError
from pipeline.bad_inputs import BadInputs
from pipeline.sources import remote

T = TypeVar("T")

COMPRESSED = (".gz", ".zst", ".xz")
#: Sources up to this size are fingerprinted by their whole content, larger ones by both ends of each file.
_WHOLE_BYTES = 64 << 20
_END_BYTES = 4096
_BUFFER_BYTES = 1 << 20
#: The same of a decompressor that loses what it has of a buffer when it meets damage.
_SMALL_BUFFER_BYTES = 1 << 17

#: What reading an unreadable or damaged file raises; a network that stays broken is a RequestError,
#: a disk that fails a StorageError instead.
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


class File(NamedTuple):
    """A file of a source; picklable.

    Attributes:
        name: relative to the folder that the source was given by.
        path: where it is: a path of this machine, or a URL.
        size: bytes, as stored.
        tag: what its storage says to tell its content from another's; None: nothing.
    """

    name: str
    path: str
    size: int
    tag: str | None = None

    @property
    def is_compressed(self) -> bool:
        return self.name.lower().endswith(COMPRESSED)

    def open(self, buffer: int = _BUFFER_BYTES) -> IO[bytes]:
        """Its bytes, as stored; seekable, ``buffer`` of them read at a time.

        Raises:
            StorageError: now or later, where the disk fails.
        """
        if remote.is_url(self.path):
            return io.BufferedReader(remote.RemoteFile(self.path, self.size, 8 * buffer), buffer)
        return io.BufferedReader(_LocalFile(self.path), buffer)


class Found(NamedTuple):
    """What is at a path.

    Attributes:
        files: name -> file, in name order.
        ignored: names of the files that are passed over, as they have other endings.
    """

    files: dict[str, File]
    ignored: tuple[str, ...]


def find(pattern: str, endings: tuple[str, ...], key: str = remote.KEY) -> dict[str, File]:
    """The files of ``look`` alone."""
    return look(pattern, endings, key).files


def look(pattern: str, endings: tuple[str, ...], key: str = remote.KEY) -> Found:
    """Files of a path, folder (searched below, by name ending, compressed or not), glob or URL of any of these.

    ``key`` is the recipe's key that ``pattern`` comes from, for messages.

    Names are relative to the folder, so that moving it changes nothing; what is not UTF-8 in them is spelt out. A link
    to nothing is a file, which cannot be opened. Hidden files are no part of a folder.

    Raises:
        RequestError: nothing is there, or the URL cannot be reached.
    """
    pattern = pattern.removeprefix("file://")
    is_folder, found = _remote(pattern, key) if remote.is_url(pattern) else _local(Path(pattern).expanduser(), key)
    ignored: tuple[str, ...] = ()
    if is_folder:
        shown = {name: f for name, f in found.items() if not any(part.startswith(".") for part in name.split("/"))}
        found = {name: file for name, file in shown.items() if plain_name(name).endswith(endings)}
        ignored = tuple(sorted(_writable(name) for name in shown.keys() - found.keys()))
        if not found:
            listed = ", ".join(ending for ending in endings if ending)
            raise RequestError(f"{key}: {pattern} holds no file ending in {listed or 'anything'}")
    if not found:
        raise RequestError(f"{key}: {pattern} is neither a file nor a folder, and no file matches it")
    return Found({(safe := _writable(name)): file._replace(name=safe) for name, file in sorted(found.items())}, ignored)


def plain_name(name: str) -> str:
    """A file's name in small letters, without what says how it is compressed."""
    name = name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name


def _local(given: Path, key: str) -> tuple[bool, dict[str, File]]:
    try:
        return _found(given)
    except OSError as error:
        # Files that are there but cannot be read are told when they are; this is a folder, or a name too long.
        raise RequestError(f"{key}: {error.filename or given}: {error.strerror}") from None


def _found(given: Path) -> tuple[bool, dict[str, File]]:
    if given.is_file():
        return False, {given.name: File(given.name, str(given), given.stat().st_size)}
    if given.is_dir():
        return True, {file.name: file for file in _below(str(given))}
    # pathlib globs below a folder only; a pattern may begin anywhere.
    matching = [Path(name) for name in glob.glob(str(given), recursive=True)]  # noqa: PTH207
    paths = [path for path in matching if path.is_file() or not path.exists()]
    root = Path(_common([path.parent.as_posix() for path in paths])) if paths else given
    found = ((path.relative_to(root).as_posix(), path) for path in paths)
    return False, {name: File(name, str(path), path.stat().st_size if path.exists() else 0) for name, path in found}


def _below(root: str) -> Iterator[File]:
    """Files below a folder that are not hidden. A folder is entered once: by its own name before that of any link."""
    entered = set()
    folders = [(root, "")]
    links: list[tuple[str, str]] = []
    while folders or links:
        if not folders:
            links.sort(reverse=True)
            folders.append(links.pop())
        folder, prefix = folders.pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    yield File(prefix + entry.name, entry.path, entry.stat().st_size)
                elif entry.is_symlink():
                    yield File(prefix + entry.name, entry.path, 0)


def _remote(url: str, key: str) -> tuple[bool, dict[str, File]]:
    is_folder, infos = remote.listed(url, key)
    if not infos:
        return is_folder, {}
    system, path = remote.open_system(url, key)
    paths = [str(info["name"]).strip("/") for info in infos]
    folders = [name.rpartition("/")[0] for name in paths]
    root = path.strip("/") if is_folder else _common(folders)
    found = {}
    for name, info in zip(paths, infos, strict=True):
        relative = name.removeprefix(root).lstrip("/")
        # A web address may end in a query, which is no part of the file's name.
        relative = relative.partition("?")[0] if path.startswith(("http://", "https://")) else relative
        where = str(system.unstrip_protocol(info["name"]))
        found[relative] = File(relative, where, int(info["size"] or 0), remote.tag_of(info))
    return is_folder, found


def _writable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _common(folders: list[str]) -> str:
    first, last = min(folders).split("/"), max(folders).split("/")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return "/".join(first[:same]) or ("/" if folders[0].startswith("/") else ".")


def fingerprints(found: dict[str, File]) -> dict[str, str]:
    """One fingerprint for the files of a source: their names, sizes and content, of a large source only the ends.

    Where the storage has its own checksum or version of a file, that stands for the content.
    """
    whole = hashlib.sha256()
    ends_only = sum(file.size for file in found.values()) > _WHOLE_BYTES
    for name, file in found.items():
        whole.update(f"{name}\0{file.size}\0".encode())
        if file.tag is not None:
            whole.update(file.tag.encode())
            continue
        try:
            with file.open(_END_BYTES) as stream:
                if ends_only and file.size > 2 * _END_BYTES:
                    whole.update(stream.read(_END_BYTES))
                    stream.seek(-_END_BYTES, io.SEEK_END)
                whole.update(stream.read())
        except OSError as error:
            # Reading it will fail alike, and be counted there.
            whole.update(str(error.strerror).encode())
    return {"files": whole.hexdigest()}


def guarded(
    file: File,
    read: Callable[[IO[bytes]], Iterator[T]],
    bad: BadInputs,
    damage: tuple[type[Exception], ...] = DAMAGE,
    stop: int | None = None,
) -> Iterator[T]:
    """What ``read`` makes of a file's decompressed bytes, to its end or where ``damage`` is met, which is counted.

    ``stop`` is the byte that no more would have been read from; None: the file's end.
    """
    try:
        with file.open() as raw:
            yield from guarded_stream(raw, file.name, file.size, read, bad, damage, stop)
    except DAMAGE as error:
        bad.add("unreadable file", f"{file.name}: {error}", file.size)


def guarded_stream(
    raw: IO[bytes],
    name: str,
    size: int,
    read: Callable[[IO[bytes]], Iterator[T]],
    bad: BadInputs,
    damage: tuple[type[Exception], ...] = DAMAGE,
    stop: int | None = None,
) -> Iterator[T]:
    """``guarded`` for an open stream of ``size`` bytes, as stored."""
    with decompressed(raw, name) as stream:
        try:
            yield from read(stream)
        except damage as error:
            bad.add("unreadable file", f"{name}: {error}", lost_bytes(size, raw.tell(), stop))


def lost_bytes(size: int, at: int, stop: int | None = None) -> int:
    """Bytes to count as lost of a file of ``size`` whose reading broke at byte ``at`` (and was to stop at ``stop``).

    One that breaks at its own end was cut off, and how much is missing nobody knows: all of it counts.
    """
    return max((size if stop is None else stop) - at, 0) or size


def open_binary(file: File) -> IO[bytes]:
    """The decompressed bytes of a plain, .gz, .zst or .xz file; damage raises one of ``DAMAGE``."""
    return decompressed(file.open(), file.name)


def decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    """The bytes of a stream whose name says how it is compressed; closing it closes ``stream``."""
    name = name.lower()
    if name.endswith(".gz"):
        return _Owning(_ByBlocks(gzip.open(stream, "rb")), _BUFFER_BYTES, stream)
    if name.endswith(".xz"):
        return _Owning(_ByBlocks(lzma.open(stream, "rb")), _BUFFER_BYTES, stream)
    if name.endswith(".zst"):
        import pyarrow

        # Arrow's reader, unlike zstandard's, notices a file that ends early.
        opened = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd")
        return _Owning(opened, _SMALL_BUFFER_BYTES, stream)
    return stream


class _LocalFile(io.FileIO):
    """A file of this machine; that its disk fails says nothing about its content."""

    def __init__(self, path: str) -> None:
        try:
            super().__init__(path)
        except OSError as error:
            raise _told_apart(error, path) from None

    def readinto(self, buffer: Any) -> int:
        try:
            # A regular file is never without an answer.
            return super().readinto(buffer) or 0
        except OSError as error:
            raise _told_apart(error, self.name) from None

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise _told_apart(error, self.name) from None


def _told_apart(error: OSError, path: object) -> Exception:
    if error.errno not in STORAGE_FAULTS:
        return error
    return StorageError(f"{path}: the disk failed to read it ({error}): see to it and run the same again")


class _ByBlocks(io.RawIOBase):
    """Gives out each block as it is decompressed, so that those before damage are not lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._stream.read1(len(buffer))
        buffer[: len(block)] = block
        return len(block)


class _Owning(io.BufferedReader):
    """A buffered reader that closes also what its raw stream reads from."""

    def __init__(self, raw: Any, buffer: int, under: IO[bytes]) -> None:
        super().__init__(raw, buffer)
        self._under = under

    def close(self) -> None:
        super().close()
        self._under.close()
