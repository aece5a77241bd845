"""Parallel files, as used for translation: line N of one file is the target of line N of the other."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import IO, Any, ClassVar, NamedTuple

from artefacts.errors import RequestError
from artefacts.pages.formats import compact
from pipeline.document import Document
from pipeline.sources import file_source, signatures
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import MOST_BYTES, Part
from pipeline.sources.file_source import FileSource
from pipeline.sources.storage import encodings, files
from pipeline.sources.storage.compressed import decompressed
from pipeline.sources.storage.files import File


class Lines(NamedTuple):
    """Consecutive lines of two files.

    Attributes:
        source, target: the files.
        at: byte offset of the first line in each file.
        first: number of lines before the first of these lines.
        lines: number of lines.
        size: approximate stored size in both files, in bytes, including lost bytes.
        faults: (reason, place, lost bytes) for anything after these lines that could not be read.
    """

    source: File
    target: File
    at: tuple[int, int]
    first: int
    lines: int
    size: int
    faults: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True)
class ParallelSource(FileSource):
    """Pairs of lines from two files. If the paths are folders or globs, their files are sorted by name and paired.

    Lines are counted before they are read. Plain UTF-8 files are divided into parts at line ends. Any other file is
    read by a single process. Pairs of blank lines are skipped. If a file is damaged, the lines before the damage are
    still read.

    Attributes:
        path: the texts: file, folder, glob or URL, optionally with .gz, .zst or .xz.
        target_path: their targets.
        encoding: encoding of the files.
    """

    target_path: str
    encoding: str = encodings.UTF8

    endings: ClassVar[tuple[str, ...]] = ("",)

    @cached_property
    def _pairs(self) -> list[tuple[File, File]]:
        targets = files.find(self.target_path, self.endings, f"{self.key}.target_path")
        if len(self.files) != len(targets):
            raise RequestError(
                f"{self.key}: {self.path} has {len(self.files):,} files and {self.target_path} {len(targets):,}: "
                "each file needs a target file"
            )
        return list(zip(self.files.values(), targets.values(), strict=True))

    def size(self, workers: int) -> int | None:
        return sum(source.size + target.size for source, target in self._pairs)

    def details(self) -> dict[str, Any]:
        return {**super().details(), "bytes": self.size(1)}

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part. Parts consist of ``Lines``.

        Raises:
            RequestError: two files have different numbers of lines, or a line is too long.
        """
        pieces = ((piece.size, piece) for pair in self._pairs for piece in self._cut(*pair))
        return file_source.grouped(pieces, self.most_bytes)

    def _cut(self, source: File, target: File) -> Iterator[Lines]:
        """Cut two files' lines into pieces of about ``most_bytes``.

        Files that are compressed, damaged or not UTF-8 are kept in one piece.
        """
        undivided = source.is_compressed or target.is_compressed or self.encoding != encodings.UTF8
        # Decompressed or decoded text can be longer than the file.
        most = math.inf if undivided else self.most_bytes
        cuts, begins = [(0, 0)], [0]
        broken: dict[File, tuple[str, str, int]] = {}
        lines = at = 0
        for lines, at in self._ends(source, broken):
            if at - cuts[-1][1] >= most:
                cuts.append((lines, at))
        wanted = {line for line, _ in cuts[1:]}
        targets = end = 0
        for targets, end in self._ends(target, broken):
            if targets in wanted:
                begins.append(end)
        # A damaged file may have fewer lines than the other, but not more.
        if lines != targets and (source if lines < targets else target) not in broken:
            raise RequestError(
                f"{self.key}: {source.path} has {lines:,} lines and {target.path} {targets:,}: each line needs a "
                "target line"
            )
        if broken:
            size = source.size + target.size
            yield Lines(source, target, (0, 0), 0, min(lines, targets), size, tuple(broken.values()))
            return
        cuts.append((lines, at))
        begins.append(end)
        stored = (source.size + target.size) / max(at + end, 1)
        for (first, begin), (last, stop), other, until in zip(cuts, cuts[1:], begins, begins[1:], strict=False):
            size = int(stored * (stop - begin + until - other))
            yield Lines(source, target, (begin, other), first, last - first, size)

    def _ends(self, file: File, broken: dict[File, tuple[str, str, int]]) -> Iterator[tuple[int, int]]:
        """Yield the number of each line, from 1, and the offset of its end in UTF-8 bytes. Record damage in ``broken``.

        Raises:
            RequestError: a line is too long.
        """
        at = read = 0
        try:
            with file.open() as raw, decompressed(raw, file.name) as stream:
                if fault := signatures.other_kind(signatures.peek(stream)):
                    broken[file] = (fault, file.name, file.size)
                    return
                try:
                    for number, line in enumerate(self._lines(stream), 1):
                        at += len(line)
                        if len(line) == MOST_BYTES and not line.endswith(b"\n"):
                            raise RequestError(f"{file.path}: a line longer than {compact(MOST_BYTES, 'B')}")
                        yield number, at
                finally:
                    read = raw.tell()
        except files.DAMAGE as error:
            broken[file] = ("unreadable file", f"{file.name}: {error}", files.lost_bytes(file.size, read))

    def _lines(self, stream: IO[bytes]) -> Iterator[bytes]:
        stream = stream if self.encoding == encodings.UTF8 else encodings.as_utf8(stream, self.encoding)
        return iter(lambda: stream.readline(MOST_BYTES), b"")

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        bad.bytes += part.size
        for piece in part.where:
            for fault in piece.faults:
                bad.add(*fault)
            if not piece.lines:
                continue
            try:
                yield from self._read(piece, bad)
            except files.DAMAGE as error:
                bad.add("unreadable file", f"{piece.source.name}: {error}", piece.size)

    def _read(self, piece: Lines, bad: BadInputs) -> Iterator[Document]:
        name = piece.source.name
        with files.open_binary(piece.source) as source, files.open_binary(piece.target) as target:
            for stream, at in zip((source, target), piece.at, strict=True):
                if at:
                    stream.seek(at)
            pairs = zip(self._lines(source), self._lines(target), strict=False)
            for number, pair in enumerate(islice(pairs, piece.lines), piece.first + 1):
                codec = "utf-8-sig" if number == 1 else "utf-8"
                read: list[str] = []
                for line, file in zip(pair, (piece.source, piece.target), strict=True):
                    try:
                        read.append(line.decode(codec).rstrip("\r\n"))
                    except UnicodeDecodeError:
                        bad.add(encodings.fault(self.encoding), f"{file.name} line {number}")
                        break
                if len(read) < 2:
                    continue
                text, target_text = read
                if target_text.strip():
                    bad.good += 1
                    yield Document(f"parallel:{name}:{number}", text, name, "pair", target_text)
                elif text.strip():
                    bad.add("empty target", f"{piece.target.name} line {number}")
