"""Decontamination: drop texts that have a word sequence in common with an evaluation set.

The rule is from Brown et al. 2020, appendix C.
"""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow
from numpy.typing import NDArray

from artefacts.errors import RequestError
from configs.schema.clean import DecontaminateSection
from pipeline.cleaning.column import Fault
from pipeline.ngrams import Known, sequences, word_counts
from pipeline.sources.jsonl import getter
from pipeline.sources.storage import files
from pipeline.sources.storage.files import File
from pipeline.sources.text import decode

#: The recipe key for the evaluation texts, and the suffixes of their files (.gz, .zst or .xz may follow).
KEY = "data.clean.decontaminate.path"
ENDINGS = (".txt", ".jsonl")


class Contamination:
    """The word sequences of the evaluation texts (see ``pipeline/ngrams.py``).

    Attributes:
        warnings: a message for each evaluation set with texts too short to be matched inside a document. A set is
            one file of records, or all .txt files together.
    """

    def __init__(self, section: DecontaminateSection) -> None:
        """Read the evaluation texts.

        An evaluation text with fewer than ``words`` words matches only texts that consist of exactly the same words.

        Raises:
            RequestError: there are no files, a file is damaged or has a record without the field, or all texts in a set
                are too short. Without these checks, the model might be trained on evaluation texts.
        """
        self._words = section.words
        self.warnings: list[str] = []
        hashes = []
        for name, texts in _sets(section).items():
            column = pyarrow.array(texts, pyarrow.large_string())
            self._note_short(name, word_counts(column))
            hashes.append(sequences(pyarrow.chunked_array([column]), self._words)[0])
        self._known = Known(np.concatenate(hashes))

    def _note_short(self, name: str, counts: NDArray[np.int64]) -> None:
        short = int(np.sum(counts < self._words))
        if short and short == len(counts):
            raise RequestError(
                f"{KEY}: {name}: all texts are shorter than {self._words} words and cannot be matched inside a "
                "document: lower data.clean.decontaminate.words, or remove this file"
            )
        if short:
            self.warnings.append(
                f"{name}: {short:,} of {len(counts):,} texts are shorter than {self._words} words and cannot be "
                "matched inside a document (data.clean.decontaminate.words)"
            )

    def faults(self, texts: pyarrow.LargeStringArray) -> list[Fault]:
        """Return one fault, whose mask marks the texts that share a sequence with an evaluation text."""
        hashes, owners = sequences(pyarrow.chunked_array([texts]), self._words)
        shared = np.zeros(len(texts), bool)
        shared[owners[self._known.find(hashes)[0]]] = True
        return [Fault("shares a word sequence with data.clean.decontaminate.path", shared)]


def _sets(section: DecontaminateSection) -> dict[str, list[str]]:
    """Return the evaluation texts of each set."""
    sets: dict[str, list[str]] = {}
    for file in files.find(str(section.path), ENDINGS, KEY).values():
        name = str(section.path) if files.plain_name(file.name).endswith(".txt") else file.name
        texts = list(_texts(file, section.text_field))
        if not any(text.strip() for text in texts):
            raise RequestError(f"{KEY}: {file.name} has no text: remove this file")
        sets.setdefault(name, []).extend(texts)
    return sets


def _texts(file: File, field: str) -> Iterator[str]:
    """Yield a file's evaluation texts: the content of a .txt file, or the text field of each record."""
    try:
        with files.open_binary(file) as stream:
            content = decode(stream.read())
    except files.DAMAGE as error:
        raise RequestError(f"{KEY}: {file.name} cannot be read: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{KEY}: {file.name} is not UTF-8: byte {error.start}") from None
    if files.plain_name(file.name).endswith(".txt"):
        yield content
        return
    # Don't use splitlines: it also splits at U+2028 and similar characters, which JSON strings can contain.
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield _text(line, field, f"{file.name}:{number}")


def _text(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{KEY}: {where}: malformed record: {error}") from None
    try:
        text = getter(field)(record)
    except (KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise RequestError(f"{KEY}: {where}: no text field {field!r} (see data.clean.decontaminate.text_field)")
    # JSON escapes can produce lone surrogates, which UTF-8 cannot encode.
    return text.encode("utf-8", "replace").decode()
