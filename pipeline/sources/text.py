"""Files of plain text, cut into documents at paragraph ends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.sources import files

_SUFFIXES = (".txt", ".text", ".md", ".rst")
#: Files are read in groups of about so many bytes.
_PART_BYTES = 32 << 20


@dataclass(frozen=True)
class TextSource:
    """Text files of a path, folder or glob; each is one input, read whole.

    Attributes:
        path: file, folder or glob.
        chunk_chars: documents are cut at the first paragraph end beyond so many characters; 0: a file is a document.
    """

    path: str
    chunk_chars: int

    @property
    def name(self) -> str:
        return self.path

    @cached_property
    def _files(self) -> dict[str, Path]:
        return files.find(self.path, _SUFFIXES)

    def inputs(self) -> dict[str, str]:
        return files.fingerprints(self._files)

    def parts(self, workers: int) -> Sequence[tuple[str, ...]]:
        """Names of the files of each part."""
        groups: list[tuple[str, ...]] = []
        group: list[str] = []
        size = 0
        for name, path in self._files.items():
            group.append(name)
            size += path.stat().st_size
            if size >= _PART_BYTES:
                groups.append(tuple(group))
                group, size = [], 0
        return [*groups, tuple(group)] if group else groups

    def read(self, part: tuple[str, ...], bad: BadInputs) -> Iterator[Document]:
        for name in part:
            try:
                with files.open_binary(self._files[name]) as stream:
                    text = decode(stream.read())
            except files.DAMAGE as error:
                bad.add("unreadable file", f"{name}: {error}")
                continue
            except UnicodeDecodeError as error:
                bad.add("invalid UTF-8", f"{name}: byte {error.start}")
                continue
            bad.good += 1
            for number, chunk in enumerate(cut(text, self.chunk_chars)):
                yield Document(f"text:{name}:{number}", chunk, name, "text")

    def details(self) -> dict[str, Any]:
        return {"files": len(self._files)}


def decode(content: bytes) -> str:
    """Text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one; newlines as LF.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return content.decode("utf-16" if utf16 else "utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def cut(text: str, size: int) -> Iterator[str]:
    """Cut a text at the first paragraph end at or after ``size`` characters; 0: do not cut.

    Where none follows within as many again, it is cut at a line end, failing that at a space, failing that after
    ``size`` characters; an end shorter than half of that stays with what is before it. The pieces joined are the text.
    """
    start = 0
    while size and len(text) - start > size + size // 2:
        ends = (text.find(mark, start + size - 1, start + 2 * size) for mark in ("\n\n", "\n", " "))
        stop = next((end + 1 for end in ends if end >= 0), start + size)
        while stop < len(text) and text[stop] == "\n":
            stop += 1
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]
