"""Files of plain text, cut into documents."""

import codecs
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from artefacts.errors import RequestError
from pipeline.document import Document
from pipeline.sources import file_source, signatures
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Part
from pipeline.sources.chunking import Piece, pieces
from pipeline.sources.file_source import FileSource
from pipeline.sources.storage import encodings, files
from pipeline.sources.storage.compressed import decompressed
from pipeline.sources.storage.files import File

#: Characters of a block of a long text, and bytes (of UTF-8) of its documents in a part.
_BLOCK_CHARS = 1 << 20
_CARRIED_BYTES = 16 << 20
#: Bytes of a text, unpacked, that is read whole.
_MOST_WHOLE_BYTES = 256 << 20


class Carried(NamedTuple):
    """Documents of a text that is cut as it is read, and what became of the files that ended there."""

    documents: tuple[tuple[str, str, str], ...]
    good: int
    faults: tuple[tuple[str, str, int], ...]


@dataclass
class _Reading:
    """How far a text that is read in blocks has come.

    Attributes:
        stored: bytes of the source read so far.
        begins: (character, file) where each file begins that no document has reached yet.
    """

    stored: int = 0
    chars: int = 0
    newlines: int = 2
    good: int = 0
    faults: list[tuple[str, str, int]] = field(default_factory=list)
    begins: deque[tuple[int, str]] = field(default_factory=deque)


@dataclass(frozen=True)
class TextSource(FileSource):
    """Text files of a path, folder, glob or URL; each is one input.

    A file of moderate length is read whole by the process that its part falls to, and is bad as a whole if any of it
    is. A longer one, and all files where they are merged, are cut where the parts are made; damage ends such a file.

    Attributes:
        path: file, folder, glob or URL of .txt, .text, .md or .rst, also .gz, .zst, .xz.
        chunk_chars: length of a document, about; 0: a file is a document.
        chunk: where a document may end, see ``pipeline.sources.chunking``.
        chunk_overlap: characters that a window repeats of the one before it.
        merge: all files are one text, a blank line between two.
        encoding: how the files are encoded; UTF-8 stands also for UTF-16 with a byte order mark.
    """

    chunk_chars: int
    chunk: Literal["paragraph", "sentence", "window"] = "paragraph"
    chunk_overlap: int = 0
    merge: bool = False
    encoding: str = encodings.UTF8

    endings: ClassVar[tuple[str, ...]] = (".txt", ".text", ".md", ".rst")

    @property
    def partition_scheme(self) -> str:
        return f"{super().partition_scheme}, longer or merged files in {_CARRIED_BYTES}"

    def parts(self, workers: int) -> Iterator[Part]:
        """Each part: files to be read, or ``Carried``."""
        group: list[tuple[int, File]] = []
        for file in () if self.merge else self.files.values():
            most = file_source.COMPRESSED_PART_BYTES if file.is_compressed else file_source.PART_BYTES
            if file.size <= most or not self.chunk_chars:
                group.append((file.size, file))
                continue
            yield from file_source.grouped(group, self.most_bytes)
            group = []
            yield from self._carried([file])
        yield from file_source.grouped(group, self.most_bytes)
        if self.merge:
            yield from self._carried(list(self.files.values()))

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        bad.bytes += part.size
        if isinstance(part.where[0], Carried):
            (carried,) = part.where
            bad.good += carried.good
            for fault in carried.faults:
                bad.add(*fault)
            yield from (Document(name, text, source, "text") for name, text, source in carried.documents)
            return
        for file in part.where:
            text = self._whole(file, bad)
            if text is None:
                continue
            # An empty file is an empty document, as an empty record is.
            documents = pieces([text], self.chunk, self.chunk_chars, self.chunk_overlap) if text else [Piece(0, "")]
            for number, piece in enumerate(documents):
                yield Document(f"text:{file.name}:{number}", piece.text, file.name, "text")

    def _whole(self, file: File, bad: BadInputs) -> str | None:
        """The text of a file, of a damaged one what is before the damage; None: there is none."""
        damage: Exception | None = None
        content = b""
        try:
            with file.open() as raw, decompressed(raw, file.name) as stream:
                if fault := signatures.other_kind(signatures.peek(stream)):
                    bad.add(fault, file.name, file.size)
                    return None
                content, damage = files.up_to_damage(stream, _MOST_WHOLE_BYTES)
                at = raw.tell()
        except files.DAMAGE as error:
            damage, at = error, 0
        if damage is not None:
            bad.add("unreadable file", f"{file.name}: {damage}", files.lost_bytes(file.size, at))
            if not content:
                return None
        if len(content) > _MOST_WHOLE_BYTES:
            cure = "unpacked" if self.chunk_chars else "set chunk_chars"
            bad.add(f"longer than {_MOST_WHOLE_BYTES >> 20} MB: {cure}", file.name, file.size)
            return None
        try:
            text = decode(content, self.encoding, is_cut=damage is not None)
        except UnicodeError as error:
            where = f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
            bad.add(encodings.fault(self.encoding), f"{file.name}: {where}", file.size)
            return None
        bad.good += 1
        return text

    def _carried(self, texts: list[File]) -> Iterator[Part]:
        """Parts of one text, made of files one after the other."""
        reading = _Reading()
        ready: list[tuple[str, str, str]] = []
        size = begun = 0
        blocks = _blocks(texts, reading, self.encoding)
        whole = blocks if self.chunk_chars else _short(blocks, self.key)
        documents = pieces(whole, self.chunk, self.chunk_chars, self.chunk_overlap)
        for number, piece in enumerate(documents):
            source = _file_of(piece, reading)
            ready.append((f"text:{'merged' if self.merge else source}:{number}", piece.text, source))
            size += _utf8_bytes(piece.text)
            if size >= _CARRIED_BYTES:
                yield Part(reading.stored - begun, (_carry(ready, reading),), size)
                begun, ready, size = reading.stored, [], 0
        if ready or reading.good or reading.faults:
            yield Part(reading.stored - begun, (_carry(ready, reading),), size)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _short(blocks: Iterator[str], key: str) -> Iterator[str]:
    """The blocks of a text that is to be one document.

    Raises:
        RequestError: it is too long for that.
    """
    size = 0
    for block in blocks:
        size += _utf8_bytes(block)
        if size > _MOST_WHOLE_BYTES:
            limit = f"{_MOST_WHOLE_BYTES >> 20} MB"
            raise RequestError(f"{key}.merge: one document of more than {limit}: set {key}.chunk_chars")
        yield block


def _carry(ready: list[tuple[str, str, str]], reading: _Reading) -> Carried:
    carried = Carried(tuple(ready), reading.good, tuple(reading.faults))
    reading.good = 0
    reading.faults.clear()
    return carried


def _file_of(piece: Piece, reading: _Reading) -> str:
    """The file that a piece begins in."""
    while len(reading.begins) > 1 and reading.begins[1][0] <= piece.offset:
        reading.begins.popleft()
    return reading.begins[0][1]


def _blocks(texts: list[File], reading: _Reading, coded: str) -> Iterator[str]:
    """The files' text, a blank line between two, in blocks; damage ends a file."""
    for file in texts:
        before = reading.stored
        chars = at = read = 0
        try:
            with file.open() as raw, decompressed(raw, file.name) as stream:
                if fault := signatures.other_kind(signatures.peek(stream)):
                    reading.faults.append((fault, file.name, file.size))
                    reading.stored = before + file.size
                    continue
                try:
                    for block in _decoded(stream, coded):
                        if not chars:
                            yield from _separated(file, reading)
                        chars += len(block)
                        reading.chars += len(block)
                        # Damage that is met ahead of a block sets it back a little.
                        read = max(read, min(raw.tell(), file.size))
                        reading.stored = before + read
                        reading.newlines = len(block[-2:]) - len(block[-2:].rstrip("\n"))
                        yield block
                except (*files.DAMAGE, UnicodeError):
                    at = raw.tell()
                    raise
        except files.DAMAGE as error:
            where = f"{file.name}: after {chars} characters: {error}"
            reading.faults.append(("unreadable file", where, files.lost_bytes(file.size, at)))
        except UnicodeError:
            where = f"{file.name}: within {_BLOCK_CHARS} characters after {chars}"
            reading.faults.append((encodings.fault(coded), where, file.size - read))
        else:
            reading.good += not chars
        # Of a damaged file, too, what was read is read.
        reading.good += chars > 0
        reading.stored = before + file.size


def _separated(file: File, reading: _Reading) -> Iterator[str]:
    """What lacks of a blank line before a file, where another is before it."""
    between = "\n" * max(0, 2 - reading.newlines)
    reading.chars += len(between)
    reading.begins.append((reading.chars, file.name))
    if between:
        yield between


def _decoded(stream: Any, coded: str) -> Iterator[str]:
    if coded == encodings.UTF8:
        start = signatures.peek(stream)[:2]
        coded = "utf-16" if start in _UTF16_MARKS else "utf-8-sig"
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(coded)(), translate=True)
    # Of a stream that breaks, longer reads (as of a TextIOWrapper) would lose what came before.
    while block := stream.read1(_BLOCK_CHARS):
        if text := decoder.decode(block):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def decode(content: bytes, coded: str = encodings.UTF8, is_cut: bool = False) -> str:
    """Text of a file, newlines as LF. UTF-8 is with or without a byte order mark, and stands also for UTF-16 with one.

    ``is_cut``: it may end within a character, which is left out.

    Raises:
        UnicodeDecodeError: it is not in its encoding.
        UnicodeError: the same of an encoding other than UTF-8.
    """
    if coded == encodings.UTF8:
        coded = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
        text = codecs.getincrementaldecoder(coded)().decode(content) if is_cut else content.decode(coded)
    else:
        # As a stream is decoded: of UTF-16 without its mark it does not guess.
        text = codecs.getincrementaldecoder(coded)().decode(content, not is_cut).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")
