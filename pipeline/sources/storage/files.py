"""List the source files at a local path or URL, and open them, decompressing them if needed."""

import glob
import io
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from artefacts.errors import STORAGE_FAULTS, RequestError, StorageError, spelled
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.storage import remote
from pipeline.sources.storage.compressed import DAMAGE, ENDINGS, decompressed

T = TypeVar("T")

_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 4096
#: A file that was changed this recently may change again within the same tick of its file system's clock.
_TICK_NS = 2 * 10**9


class File(NamedTuple):
    """A file of a source. It is picklable.

    Attributes:
        name: name relative to the source's folder.
        path: a path on this machine, or a URL.
        size: stored size in bytes.
        tag: the storage's checksum or version for the content, or None if there is none.
        stamp: size and timestamps, which change if the file is written to, or None if they are not reliable.
    """

    name: str
    path: str
    size: int
    tag: str | None = None
    stamp: str | None = None

    @property
    def is_compressed(self) -> bool:
        return self.name.lower().endswith(ENDINGS)

    @property
    def is_remote(self) -> bool:
        return remote.is_url(self.path)

    def open(self, buffer: int = _BUFFER_BYTES) -> IO[bytes]:
        """Open a seekable stream of the file's stored bytes. The stream reads ``buffer`` bytes at a time.

        Raises:
            StorageError: the disk fails, now or later.
        """
        if self.is_remote:
            return io.BufferedReader(remote.RemoteFile(self.path, self.size, 8 * buffer), buffer)
        return io.BufferedReader(_LocalFile(self.path), buffer)


def head(file: File) -> bytes:
    """Return the first stored bytes of a file, or b"" if it cannot be read."""
    try:
        with file.open(_HEAD_BYTES) as stream:
            return stream.read(_HEAD_BYTES)
    except OSError:
        return b""


class Listing(NamedTuple):
    """The files at a path.

    Attributes:
        files: name -> file, sorted by name.
        ignored: names of the files that are skipped because of their suffixes.
    """

    files: dict[str, File]
    ignored: tuple[str, ...]


def find(pattern: str, endings: tuple[str, ...], key: str = remote.KEY) -> dict[str, File]:
    """List the files at a path. Unlike ``look``, do not list the ignored files."""
    return look(pattern, endings, key).files


def look(pattern: str, endings: tuple[str, ...], key: str = remote.KEY) -> Listing:
    """List the files at a path.

    Names are relative to the folder, so moving the folder does not change them. Invalid UTF-8 in names is escaped. A
    dangling link is listed as a file that cannot be opened. Hidden files in a folder are left out.

    Args:
        pattern: a file, a folder (searched recursively), a glob, or a URL of any of these.
        endings: suffixes of the files to list in a folder, not counting compression suffixes.
        key: the path's recipe key, for messages.

    Raises:
        RequestError: there are no such files, or the URL cannot be reached.
    """
    pattern = pattern.removeprefix("file://")
    is_folder, matches = _remote(pattern, key) if remote.is_url(pattern) else _local(Path(pattern).expanduser(), key)
    ignored: tuple[str, ...] = ()
    if is_folder:
        shown = {name: f for name, f in matches.items() if not any(part.startswith(".") for part in name.split("/"))}
        matches = {name: file for name, file in shown.items() if plain_name(name).endswith(endings)}
        ignored = tuple(sorted(spelled(name) for name in shown.keys() - matches.keys()))
        if not matches:
            listed = ", ".join(ending for ending in endings if ending)
            raise RequestError(f"{key}: {pattern} has no file ending in {listed or 'anything'}")
    if not matches:
        raise RequestError(f"{key}: {pattern} is neither a file nor a folder, and no file matches it")
    return Listing(
        {(safe := spelled(name)): file._replace(name=safe) for name, file in sorted(matches.items())}, ignored
    )


def plain_name(name: str) -> str:
    """Return a file's name in lowercase, without any compression suffix."""
    name = name.lower()
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return name


def _local(local: Path, key: str) -> tuple[bool, dict[str, File]]:
    try:
        return _listed(local)
    except OSError as error:
        # Unreadable files are reported when they are read, so this is an unreadable folder or an overlong name.
        raise RequestError(f"{key}: {error.filename or local}: {error.strerror}") from None


def _listed(local: Path) -> tuple[bool, dict[str, File]]:
    if local.is_file():
        return False, {local.name: _file(local.name, str(local), local.stat())}
    if local.is_dir():
        return True, {file.name: file for file in _below(str(local))}
    # pathlib can only glob below a folder, but a pattern can begin anywhere.
    matching = [Path(name) for name in glob.glob(str(local), recursive=True)]  # noqa: PTH207
    paths = [path for path in matching if path.is_file() or not path.exists()]
    root = Path(_common([path.parent.as_posix() for path in paths])) if paths else local
    files = ((path.relative_to(root).as_posix(), path) for path in paths)
    return False, {name: _file(name, str(path), path.stat() if path.exists() else None) for name, path in files}


def _file(name: str, path: str, status: os.stat_result | None) -> File:
    """Describe a local file. If ``status`` is None, the file is a dangling link."""
    if status is None:
        return File(name, path, 0)
    # Even if the modification time (the second value) is set back, the change time (the third) changes.
    stamp = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
    recent = abs(time.time_ns() - status.st_mtime_ns) < _TICK_NS
    return File(name, path, status.st_size, stamp=None if recent else stamp)


def _below(root: str) -> Iterator[File]:
    """Yield the files under a folder, except hidden ones. Visit each folder only once, preferably not via a link."""
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
                    yield _file(prefix + entry.name, entry.path, entry.stat())
                elif entry.is_symlink():
                    yield _file(prefix + entry.name, entry.path, None)


def _remote(url: str, key: str) -> tuple[bool, dict[str, File]]:
    is_folder, infos = remote.listed(url, key)
    if not infos:
        return is_folder, {}
    system, path = remote.open_system(url, key)
    paths = [str(info["name"]).strip("/") for info in infos]
    folders = [name.rpartition("/")[0] for name in paths]
    root = path.strip("/") if is_folder else _common(folders)
    files = {}
    for name, info in zip(paths, infos, strict=True):
        relative = name.removeprefix(root).lstrip("/")
        # A web address can end in a query, which is not part of the file's name.
        relative = relative.partition("?")[0] if path.startswith(("http://", "https://")) else relative
        where = str(system.unstrip_protocol(info["name"]))
        files[relative] = File(relative, where, int(info["size"] or 0), remote.tag_of(info))
    return is_folder, files


def _common(folders: list[str]) -> str:
    first, last = min(folders).split("/"), max(folders).split("/")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return "/".join(first[:same]) or ("/" if folders[0].startswith("/") else ".")


def guarded(
    file: File,
    read: Callable[[IO[bytes]], Iterator[T]],
    bad: BadInputs,
    damage: tuple[type[Exception], ...] = DAMAGE,
    stop: int | None = None,
) -> Iterator[T]:
    """Yield the items that ``read`` yields from a file's decompressed bytes. Stop at damage, and count it in ``bad``.

    ``damage`` lists the exceptions that mean damage. ``stop`` is the byte at which ``read`` would stop without damage,
    or None for the end of the file.
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
    """Like ``guarded``, but for an open stream of ``size`` stored bytes."""
    with decompressed(raw, name) as stream:
        try:
            yield from read(stream)
        except damage as error:
            bad.add("unreadable file", f"{name}: {error}", lost_bytes(size, raw.tell(), stop))


def up_to_damage(stream: Any, most: float = math.inf) -> tuple[bytes, Exception | None]:
    """Read the rest of a buffered stream, up to any damage. Returns the bytes, and the exception (None without damage).

    Reading stops soon after ``most`` bytes.
    """
    blocks: list[bytes] = []
    size = 0
    try:
        # A larger read would lose the bytes before any damage.
        while size <= most and (block := stream.read1(_BUFFER_BYTES)):
            blocks.append(block)
            size += len(block)
    except DAMAGE as error:
        return b"".join(blocks), error
    return b"".join(blocks), None


def lost_bytes(size: int, at: int, stop: int | None = None) -> int:
    """Return how many bytes of a file count as lost if reading up to byte ``stop`` fails at byte ``at``.

    ``size`` is the file's size. If reading fails at the end, the file is truncated. How much is missing is unknown, so
    the complete file counts as lost.
    """
    return max((size if stop is None else stop) - at, 0) or size


def open_binary(file: File) -> IO[bytes]:
    """Open a stream of the decompressed bytes of a plain, .gz, .zst or .xz file. Damage raises one of ``DAMAGE``."""
    return decompressed(file.open(), file.name)


class _LocalFile(io.FileIO):
    """A local file. A disk failure raises StorageError rather than OSError, because the content may be intact."""

    def __init__(self, path: str) -> None:
        try:
            super().__init__(path)
        except OSError as error:
            raise _storage_error(error, path) from None

    def readinto(self, buffer: Any) -> int:
        try:
            # A regular file never returns None.
            return super().readinto(buffer) or 0
        except OSError as error:
            raise _storage_error(error, self.name) from None

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise _storage_error(error, self.name) from None


def _storage_error(error: OSError, path: object) -> Exception:
    if error.errno not in STORAGE_FAULTS:
        return error
    return StorageError(f"{path}: the disk failed to read it ({error}): check the disk and run the same command again")
