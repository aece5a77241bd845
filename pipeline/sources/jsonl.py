"""JSON lines, plain or compressed: a record a line, its text in one field."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import IO, Any, ClassVar

import orjson

from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.sources import Part, coding, file_source, files
from pipeline.sources.file_source import FileSource
from pipeline.sources.files import File

#: Longest line that is read, in bytes; a longer one is no record but a file of another kind.
_MOST_LINE_BYTES = 256 << 20


@dataclass(frozen=True)
class JsonlSource(FileSource):
    """Records of a path, folder, glob or URL; each line is one input.

    Attributes:
        path: file, folder, glob or URL of .jsonl, .ndjson or .json, also .gz, .zst, .xz.
        text_field: field that holds the text; ``meta.body``: body in the record in meta, unless a field is called so.
        encoding: how the files are encoded; a file that is not in UTF-8 is read by one process.
    """

    text_field: str
    encoding: str = coding.UTF8

    endings: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def parts(self, workers: int) -> Iterator[Part]:
        """Each part: (file, first byte, byte to stop at) triples; stop 0: to the end."""
        return file_source.grouped(self._ranges(), self.most_bytes)

    def _ranges(self) -> Iterator[tuple[int, tuple[File, int, int]]]:
        most = self.most_bytes
        for file in self.files.values():
            if file.is_compressed or file.size <= most or self.encoding != coding.UTF8:
                yield file.size, (file, 0, 0)
            else:
                for at in range(0, file.size, most):
                    stop = min(at + most, file.size)
                    yield stop - at, (file, at, stop)

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        bad.bytes += part.size
        for file, start, stop in part.where:
            lines = partial(self._lines, file, start, stop, bad)
            yield from files.guarded(file, lines, bad, (*files.DAMAGE, UnicodeError), stop or None)

    def _lines(self, file: File, start: int, stop: int, bad: BadInputs, stream: IO[bytes]) -> Iterator[Document]:
        name, at, lost = file.name, start, 0
        if recoded := self.encoding != coding.UTF8:
            stream = coding.as_utf8(stream, self.encoding)
        if start:
            # A line belongs to the part that its first byte lies in.
            stream.seek(start - 1)
            at += _to_line_end(stream) - 1
        elif stream.peek(1)[:1] == b"[":  # type: ignore[attr-defined]
            bad.add("a JSON array, not JSON lines", name, file.size)
            return
        text_of, prefix = getter(self.text_field), f"jsonl:{name}:"
        while (not stop or at < stop) and (line := stream.readline(_MOST_LINE_BYTES)):
            size = len(line)
            text = None
            if size == _MOST_LINE_BYTES and not line.endswith(b"\n"):
                bad.add(f"a line longer than {_MOST_LINE_BYTES >> 20} MB", f"{name} at byte {at}")
                size += _to_line_end(stream)
            else:
                try:
                    text = text_of(orjson.loads(line))
                except (ValueError, KeyError, TypeError):
                    # Rare: blank, malformed, not an object, or JSON that only the standard library takes.
                    text = self._unusual(line, name, at, bad)
                else:
                    if type(text) is not str:
                        text = self._unusual(line, name, at, bad)
            at += size
            if text is None:
                lost += 0 if line.isspace() else size
                continue
            bad.good += 1
            yield Document(f"{prefix}{at - size}", text, name, "record")
        # Of a compressed or recoded file the lines' share is known once it is read.
        bad.lost_bytes += lost * file.size // at if lost and (recoded or file.is_compressed) else lost

    def _unusual(self, line: bytes, name: str, at: int, bad: BadInputs) -> str | None:
        """The text of a line, which begins at byte ``at`` of the (decompressed) file; None: it has none."""
        where = f"{name} at byte {at}"
        try:
            text = line.decode("utf-8-sig" if at == 0 else "utf-8")
            if not text.strip():
                return None
            record: Any = json.loads(text)
        except UnicodeDecodeError:
            bad.add(coding.fault(self.encoding), where)
            return None
        except (ValueError, RecursionError):
            bad.add("malformed line", where)
            return None
        if not isinstance(record, dict):
            bad.add("not a JSON object", where)
            return None
        value, reason = None, "is not text"
        try:
            value = getter(self.text_field)(record)
        except (KeyError, TypeError):
            reason = "missing"
        if not isinstance(value, str):
            fields = ", ".join(map(str, record)) or "none"
            bad.add(f"field {self.text_field!r} {reason}", f"{where}, fields there: {fields}")
            return None
        return value


def getter(field: str) -> Callable[[Any], Any]:
    """What gives a field of a record; KeyError or TypeError where there is none."""
    if "." not in field:
        return itemgetter(field)
    inner = field.split(".")

    def nested(record: Any) -> Any:
        if field in record:
            return record[field]
        for name in inner:
            record = record[name]
        return record

    return nested


def _to_line_end(stream: IO[bytes]) -> int:
    """Bytes to the end of the line, which are passed over."""
    passed = 0
    while piece := stream.readline(_MOST_LINE_BYTES):
        passed += len(piece)
        if piece.endswith(b"\n"):
            break
    return passed
