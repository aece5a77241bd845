"""Content fingerprints of source files. A file is hashed again only if its size or timestamps have changed.

A file's digest is recorded with its size and timestamps in ``.NAME.sources.json``, next to the artefact NAME that is
built from it. The record is not part of the artefact, which contains no timestamps. If the size or timestamps have
changed, the file is hashed again, and the artefact is stale only if the digest differs. The record may be deleted at
any time.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from artefacts import atomic, c_library, lock
from artefacts.errors import RequestError
from artefacts.progress import bar
from pipeline.sources.storage.files import File

#: Source -> file name -> its stamp (or "-") and its digest, separated by a space.
_Record = dict[str, dict[str, str]]

#: Size of the pieces that threads hash, and of the blocks that they read, in bytes.
_PIECE_BYTES = 16 << 20
_BLOCK_BYTES = 1 << 20
_THREADS = min(8, os.cpu_count() or 1)
#: Show a progress bar if at least this many bytes are hashed.
_SHOWN_BYTES = 1 << 30
#: If a file behind a URL is larger than this, and the storage provides no checksum, only samples of it are hashed.
_SAMPLED_BYTES = 64 << 20
_SAMPLES = 16
_SAMPLE_BYTES = 4096
#: Digest prefix for a file that cannot be read. The file is tried again next time.
_UNREADABLE = "unreadable: "


class SourceDigests:
    """Fingerprints of an artefact's sources."""

    def __init__(self, target: Path, trusted: bool = True) -> None:
        """Read the record of the artefact ``target``. If ``trusted`` is false, hash every file, and record nothing."""
        self._trusted = trusted
        self._lock = target.with_name(f"{target.name}.sources")
        self._path = target.with_name(f".{target.name}.sources.json")
        self._target, self._is_new = target, not self._path.exists()
        self._new_parents = [parent for parent in target.parents if not parent.exists()]
        self._record = _read(self._path)
        self._before: dict[str, dict[str, str]] = {}
        self._now: dict[str, dict[str, str]] = {}

    def of(self, source: str, files: dict[str, File]) -> str:
        """Return the fingerprint of a source's files, based on their names and content.

        If the storage provides a checksum or version for a file, it is used instead of the content. Nothing is
        recorded next to another user's artefact.

        Raises:
            StorageError: the disk failed.
        """
        self._before[source] = {name: e.partition(" ")[2] for name, e in self._record.get(source, {}).items()}
        digests = self._known(source, files)
        if not self._trusted:
            digests = _hashed(files)
        elif not c_library.may_write(self._path.parent):
            digests |= _hashed({name: file for name, file in files.items() if name not in digests})
        elif digests.keys() == files.keys():
            self._note(source, files, digests)
        else:
            # If several tasks start together, only one of them reads the source.
            with lock.wait(self._lock):
                self._record = _read(self._path)
                digests = self._known(source, files)
                digests |= _hashed({name: file for name, file in files.items() if name not in digests})
                self._note(source, files, digests)
        self._now[source] = {name: digests[name] for name in files}
        return _of_all(self._now[source])

    def _forget(self) -> None:
        """Remove the files that this object has written, unless the artefact exists or its build has started."""
        begun = self._target.exists() or self._target.with_name(f".{self._target.name}.partial").exists()
        if not self._is_new or begun:
            return
        for path in (self._path, self._lock.with_name(f".{self._lock.name}.lock")):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            for parent in self._new_parents:
                parent.rmdir()

    def changed(self, source: str, since: str | None) -> list[str]:
        """Return the names of the files that were changed, added or removed since a source had fingerprint ``since``.

        The list is empty if the record had a different fingerprint.
        """
        before, now = self._before.get(source, {}), self._now.get(source, {})
        if _of_all(before) != since:
            return []
        return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))

    def _known(self, source: str, files: dict[str, File]) -> dict[str, str]:
        """Return the digests of the files whose storage provides a checksum or whose stamp is unchanged."""
        known = {}
        for name, file in files.items():
            stamp, _, digest = self._record.get(source, {}).get(name, "").partition(" ")
            if file.tag is not None:
                known[name] = _of_tag(file)
            elif file.stamp is not None and file.stamp == stamp and not digest.startswith(_UNREADABLE):
                known[name] = digest
        return known

    def _note(self, source: str, files: dict[str, File], digests: dict[str, str]) -> None:
        """Record a source's digests.

        If two commands do so at the same time, the last one wins. Some files are then hashed again by the next command.
        """
        entries = {name: f"{file.stamp or '-'} {digests[name]}" for name, file in files.items()}
        if self._record.get(source) != entries:
            self._record[source] = entries
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self._path, self._record)


@contextmanager
def digests_of(target: Path) -> Iterator[SourceDigests]:
    """Provide the fingerprints of an artefact's sources.

    If the body raises RequestError before a build starts, no record is left behind.
    """
    digests = SourceDigests(target)
    try:
        yield digests
    except RequestError:
        digests._forget()
        raise


def fingerprint(files: dict[str, File]) -> str:
    """Return the same fingerprint of files as ``SourceDigests.of``, without reading or writing a record."""
    return _of_all(_hashed(files))


def _of_all(digests: dict[str, str]) -> str:
    combined = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        combined.update(f"{name}\0{digest}\0".encode())
    return combined.hexdigest()


def _of_tag(file: File) -> str:
    return f"{file.size} {file.tag}"


def _read(path: Path) -> _Record:
    """Read the record. Returns an empty record if the file is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sound = all(isinstance(entry, str) for entries in record.values() for entry in entries.values())
    except (OSError, ValueError, AttributeError):
        return {}
    return record if sound else {}


def _hashed(files: dict[str, File]) -> dict[str, str]:
    """Return each file's digest: its storage's checksum, a hash of its content, or the reason why it cannot be read."""
    hashes = {name: hashlib.sha256() for name, file in files.items() if file.tag is None}
    faults: dict[str, str] = {}
    total = sum(files[name].size for name in hashes)
    ahead: deque[tuple[str, int, Future[bytes]]] = deque()
    with (
        bar(total, "B", "checksums of the source", disable=total < _SHOWN_BYTES) as progress,
        ThreadPoolExecutor(_THREADS) as threads,
    ):

        def take() -> None:
            name, size, piece = ahead.popleft()
            try:
                hashes[name].update(piece.result())
            except OSError as error:
                # The stage will also fail to read this file, and will count it.
                faults[name] = f"{_UNREADABLE}{error.strerror}"
            progress.update(size)

        for name in hashes:
            for start, stop in _pieces(files[name]):
                if len(ahead) == 2 * _THREADS:
                    take()
                ahead.append((name, stop - start, threads.submit(_of_piece, files[name], start, stop)))
        while ahead:
            take()
    digests = {name: combined.hexdigest() for name, combined in hashes.items()} | faults
    return {name: digests.get(name) or _of_tag(file) for name, file in files.items()}


def _pieces(file: File) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) byte offsets of each range to hash in a file. Large remote files are only sampled."""
    if file.is_remote and file.size > _SAMPLED_BYTES:
        last = file.size - _SAMPLE_BYTES
        for number in range(_SAMPLES):
            start = last * number // (_SAMPLES - 1)
            yield start, start + _SAMPLE_BYTES
        return
    for start in range(0, max(file.size, 1), _PIECE_BYTES):
        yield start, min(start + _PIECE_BYTES, file.size)


def _of_piece(file: File, start: int, stop: int) -> bytes:
    digest = hashlib.sha256()
    with file.open(min(_BLOCK_BYTES, max(stop - start, 1))) as stream:
        stream.seek(start)
        while start < stop and (block := stream.read(min(_BLOCK_BYTES, stop - start))):
            digest.update(block)
            start += len(block)
    return digest.digest()
