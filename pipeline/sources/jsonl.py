"""JSON lines, plain or compressed: one document per line, with the text in one field."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from types import NoneType
from typing import IO, Any, ClassVar

import orjson

from artefacts.pages.formats import compact
from pipeline.document import Document
from pipeline.sources import file_source, signatures
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import MOST_BYTES, Part
from pipeline.sources.file_source import FileSource
from pipeline.sources.storage import encodings, files
from pipeline.sources.storage.files import File


@dataclass(frozen=True)
class JsonlSource(FileSource):
    """Records from JSON lines files. Unreadable inputs are counted by line.

    Attributes:
        path: file, folder, glob or URL of .jsonl, .ndjson or .json files, optionally with .gz, .zst or .xz.
        text_field: the text field. ``meta.body`` means the field ``body`` of the object ``meta``, unless there is a
            field named ``meta.body``.
        encoding: encoding of the files. A file that is not UTF-8 is read by a single process.
        target_field: the target field (text, a number or a boolean), or None if there is none.
    """

    text_field: str
    encoding: str = encodings.UTF8
    target_field: str | None = None

    endings: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part, as (file, start byte, stop byte) triples. A stop byte of 0 means the end of the file."""
        return file_source.grouped(self._ranges(), self.most_bytes)

    def _ranges(self) -> Iterator[tuple[int, tuple[File, int, int]]]:
        most = self.most_bytes
        for file in self.files.values():
            undivided = file.is_compressed or file.size <= most or self.encoding != encodings.UTF8
            if undivided or signatures.other_kind(head := files.head(file)) or _array(head):
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
        fault = None if start else signatures.other_kind(signatures.peek(stream))
        if recoded := self.encoding != encodings.UTF8:
            stream = encodings.as_utf8(stream, self.encoding)
        if start:
            # A line belongs to the part that contains its first byte.
            stream.seek(start - 1)
            at += _to_line_end(stream) - 1
        elif fault or (fault := _array(signatures.peek(stream))):
            bad.add(fault, name, file.size)
            return
        fields_of, prefix = self._fields_of(), f"jsonl:{name}:"
        while (not stop or at < stop) and (line := stream.readline(MOST_BYTES)):
            size = len(line)
            pair = None
            if size == MOST_BYTES and not line.endswith(b"\n"):
                bad.add(f"a line longer than {compact(MOST_BYTES, 'B')}", f"{name} at byte {at}")
                size += _to_line_end(stream)
            else:
                try:
                    pair = text, target = fields_of(orjson.loads(line))
                except (ValueError, KeyError, TypeError):
                    # Rare: a line that is blank, malformed, not an object, or accepted only by the standard library.
                    pair = self._unusual(line, name, at, bad)
                else:
                    if type(text) is not str or (self.target_field and (type(target) is not str or not target.strip())):
                        pair = self._unusual(line, name, at, bad)
            at += size
            if pair is None:
                lost += 0 if line.isspace() else size
                continue
            bad.good += 1
            yield Document(f"{prefix}{at - size}", pair[0], name, "record", pair[1])
        # For a compressed or recoded file, the lost fraction is known only after reading it.
        bad.lost_bytes += lost * file.size // at if lost and (recoded or file.is_compressed) else lost

    def _fields_of(self) -> Callable[[Any], tuple[Any, Any]]:
        """Return a function that returns a record's text and target. Without ``target_field``, the target is None."""
        text_of = getter(self.text_field)
        if self.target_field is None:
            return lambda record: (text_of(record), None)
        target_of = getter(self.target_field)
        return lambda record: (text_of(record), target_of(record))

    def _unusual(self, line: bytes, name: str, at: int, bad: BadInputs) -> tuple[str, str | None] | None:
        """Return the text and target of the line at byte ``at`` of the (decompressed) file, or None if it is unusable.

        An unusable line is counted in ``bad``, unless it is blank.
        """
        where = f"{name} at byte {at}"
        try:
            text = line.decode("utf-8-sig" if at == 0 else "utf-8")
            if not text.strip():
                return None
            record: Any = json.loads(text)
        except UnicodeDecodeError:
            bad.add(encodings.fault(self.encoding), where)
            return None
        except (ValueError, RecursionError):
            bad.add("malformed line", where)
            return None
        if not isinstance(record, dict):
            bad.add("not a JSON object", where)
            return None
        value = _value(record, self.text_field)
        if not isinstance(value, str):
            bad.add(*_lacking("field", self.text_field, value, record, where))
            return None
        if self.target_field is None:
            return value, None
        target = _value(record, self.target_field)
        if isinstance(target, bool | int | float):
            target = json.dumps(target)
        if target is None or (isinstance(target, str) and not target.strip()):
            bad.add("empty target", where)
        elif not isinstance(target, str):
            bad.add(*_lacking("target field", self.target_field, target, record, where))
        else:
            return value, target
        return None


def _array(head: bytes) -> str | None:
    return "a JSON array, not JSON lines" if signatures.is_json_array(head) else None


#: Sentinel for the value of a missing field.
_MISSING = object()
#: Names, for messages, of JSON values that are not text.
_KINDS = {NoneType: "null", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


def _value(record: dict[str, Any], field: str) -> Any:
    try:
        return getter(field)(record)
    except (KeyError, TypeError):
        return _MISSING


def _lacking(what: str, field: str, value: Any, record: dict[str, Any], where: str) -> tuple[str, str]:
    """Return why a record has no text in a field, and where the record is."""
    why = "missing" if value is _MISSING else f"is {_KINDS[type(value)]}"
    return f"{what} {field!r} {why}", f"{where}, fields there: {', '.join(map(str, record)) or 'none'}"


def getter(field: str) -> Callable[[Any], Any]:
    """Return a function that returns a field of a record. It raises KeyError or TypeError if the field is missing."""
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
    """Skip to the end of the line. Returns the number of bytes skipped."""
    skipped = 0
    while piece := stream.readline(MOST_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped
