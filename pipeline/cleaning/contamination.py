"""Decontamination: texts that share a sequence of words with an evaluation set (Brown et al. 2020, appendix C)."""

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow
import zstandard

from configs.errors import RequestError
from configs.schema.clean import DecontaminateSection
from pipeline.cleaning.verdict import Fault
from pipeline.overlap import Known, sequences

_KEY = "clean.decontaminate"
_SUFFIXES = (".txt", ".jsonl")
_PACKED = (".gz", ".zst")


class Contamination:
    """The word sequences of evaluation texts (words: see ``pipeline/overlap.py``)."""

    def __init__(self, section: DecontaminateSection) -> None:
        """Read the evaluation texts. One with fewer words is one sequence, which only a text of the same words shares.

        Raises:
            RequestError: the path has no .txt or .jsonl file (may be .gz or .zst), or a record lacks the field.
        """
        self._words = section.words
        texts = [text for path in _files(section) for text in _texts(path, section.text_field)]
        hashes, _ = sequences(pyarrow.chunked_array([texts], pyarrow.large_string()), self._words)
        self._known = Known(hashes)

    def faults(self, texts: pyarrow.LargeStringArray) -> list[Fault]:
        """Texts that share a sequence."""
        hashes, owners = sequences(pyarrow.chunked_array([texts]), self._words)
        shared = np.zeros(len(texts), bool)
        shared[owners[self._known.find(hashes)[0]]] = True
        return [Fault(f"shares a word sequence with {_KEY}.path", shared)]


def _files(section: DecontaminateSection) -> list[Path]:
    asked = Path(str(section.path)).expanduser()
    if asked.is_file():
        return [asked]
    paths = asked.rglob("*") if asked.is_dir() else Path(asked.anchor).glob(str(asked.relative_to(asked.anchor)))
    found = [path for path in sorted(paths) if path.is_file() and _kind(path) in _SUFFIXES]
    if not found:
        raise RequestError(f"{_KEY}.path: no .txt or .jsonl file at {asked}")
    return found


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _PACKED else path.suffix


def _open(path: Path) -> IO[str]:
    if path.suffix == ".zst":
        return io.TextIOWrapper(
            zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True), "utf-8", "replace"
        )
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open(encoding="utf-8", errors="replace")


def _texts(path: Path, field: str) -> Iterator[str]:
    """The evaluation texts of a file: all of a .txt, the field of each record of a .jsonl."""
    with _open(path) as lines:
        if _kind(path) == ".txt":
            yield lines.read()
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[field]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise RequestError(f"{path}:{number}: no text field {field!r} (see {_KEY}.text_field)")
            yield text
