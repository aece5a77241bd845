"""JSON lines, plain or compressed: a record a line, its text in one field."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.sources import files

_SUFFIXES = (".jsonl", ".ndjson", ".json")
#: A plain file is read in ranges of so many bytes; a compressed one cannot be entered half-way.
_PART_BYTES = 64 << 20


@dataclass(frozen=True)
class JsonlSource:
    """Records of a path, folder or glob; each line is one input.

    Attributes:
        path: file, folder or glob of .jsonl, .ndjson or .json, also .gz, .zst, .xz.
        text_field: field that holds the text.
    """

    path: str
    text_field: str

    @property
    def name(self) -> str:
        return self.path

    @cached_property
    def _files(self) -> dict[str, Path]:
        return files.find(self.path, _SUFFIXES)

    def inputs(self) -> dict[str, str]:
        return files.fingerprints(self._files)

    def parts(self, workers: int) -> Sequence[tuple[str, int, int]]:
        """(file, first byte, byte to stop at) of each part; stop 0: to the end."""
        parts = []
        for name, path in self._files.items():
            size = path.stat().st_size
            if path.name.endswith((".gz", ".zst", ".xz")) or size <= _PART_BYTES:
                parts.append((name, 0, 0))
            else:
                parts += [(name, at, min(at + _PART_BYTES, size)) for at in range(0, size, _PART_BYTES)]
        return parts

    def read(self, part: tuple[str, int, int], bad: BadInputs) -> Iterator[Document]:
        name, start, stop = part
        try:
            with files.open_binary(self._files[name]) as stream:
                at = start
                if start:
                    # A line belongs to the part that its first byte lies in.
                    stream.seek(start - 1)
                    at += len(stream.readline()) - 1
                elif stream.peek(1)[:1] == b"[":  # type: ignore[attr-defined]
                    bad.add("a JSON array, not JSON lines", name)
                    return
                while (not stop or at < stop) and (line := stream.readline()):
                    document = self._document(line, name, at, bad)
                    at += len(line)
                    if document:
                        bad.good += 1
                        yield document
        except files.DAMAGE as error:
            bad.add("unreadable file", f"{name}: {error}")

    def _document(self, line: bytes, name: str, at: int, bad: BadInputs) -> Document | None:
        """The document of a line, which begins at byte ``at`` of the (decompressed) file."""
        where = f"{name} at byte {at}"
        try:
            text = line.decode("utf-8-sig" if at == 0 else "utf-8")
            if not text.strip():
                return None
            record = json.loads(text)
        except UnicodeDecodeError:
            bad.add("invalid UTF-8", where)
            return None
        except (ValueError, RecursionError):
            bad.add("malformed line", where)
            return None
        if not isinstance(record, dict):
            bad.add("not a JSON object", where)
            return None
        value = record.get(self.text_field)
        if not isinstance(value, str):
            reason = "is not text" if self.text_field in record else "missing"
            fields = ", ".join(map(str, record)) or "none"
            bad.add(f"field {self.text_field!r} {reason}", f"{where}, fields there: {fields}")
            return None
        return Document(f"jsonl:{name}:{at}", value, name, "record")

    def details(self) -> dict[str, Any]:
        return {"files": len(self._files)}
