"""CSV and TSV files with a header line: one document per record, with the text in one column."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from textwrap import shorten
from typing import IO, Any, ClassVar

from artefacts.errors import RequestError, spelled
from pipeline.document import Document
from pipeline.sources import file_source, signatures
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import MOST_BYTES, Part
from pipeline.sources.file_source import FileSource
from pipeline.sources.storage import encodings, files
from pipeline.sources.storage.files import File

#: Common delimiters, for hints.
_DELIMITERS = (";", "\t", "|", ",")


@dataclass(frozen=True)
class CsvSource(FileSource):
    """Records from CSV files. Quoted fields can contain newlines, so each file is read by one process.

    Attributes:
        path: file, folder, glob or URL of .csv (commas) or .tsv (tabs) files, optionally with .gz, .zst or .xz.
        text_field: the text column.
        encoding: encoding of the files.
        delimiter: the field delimiter, or None to choose it by file suffix.
        target_field: the target column, or None if there is none.
    """

    text_field: str
    encoding: str = encodings.UTF8
    delimiter: str | None = None
    target_field: str | None = None

    endings: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part. Parts consist of files."""
        return file_source.grouped(((file.size, file) for file in self.files.values()), self.most_bytes)

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        bad.bytes += part.size
        for file in part.where:
            yield from files.guarded(file, partial(self._records, file, bad), bad, (*files.DAMAGE, UnicodeError))

    def _records(self, file: File, bad: BadInputs, stream: IO[bytes]) -> Iterator[Document]:
        if fault := signatures.other_kind(signatures.peek(stream)):
            bad.add(fault, file.name, file.size)
            return
        # Report decoding errors per record instead of per block of the file.
        if self.encoding != encodings.UTF8:
            stream = encodings.as_utf8(stream, self.encoding)
        records = open_records(stream, file, self.delimiter)
        header = next(records, None)
        if header is None:
            return
        column = self._column(header, file, "text_field", self.text_field)
        targets = self._column(header, file, "target_field", self.target_field) if self.target_field else None
        for number, record in well_formed(records, file, bad):
            where = f"{file.name} record {number}"
            text = self._text(record, column, targets, len(header), where, bad) if record else None
            if text is None:
                continue
            target = record[targets] if targets is not None else None
            if target is not None and not target.strip():
                bad.add("empty target", where)
                continue
            bad.good += 1
            yield Document(f"csv:{file.name}:{number}", text, file.name, "record", target)

    def _column(self, header: list[str], file: File, key: str, column: str) -> int:
        if column not in header:
            # In a file of a different format, the "header" can be very long.
            listed = shorten(spelled(", ".join(header)), 200, placeholder=" …")
            raise RequestError(
                f"{self.key}.{key}: {file.name} has no column {column!r}; its columns are: {listed}"
                f"{self._other_delimiter(header)}"
            )
        return header.index(column)

    def _other_delimiter(self, header: list[str]) -> str:
        """Return a hint if the only column looks like several columns, or an empty string otherwise."""
        shown = other_delimiter(header)
        return f" (a single column: is {shown!r} its delimiter? set {self.key}.delimiter='{shown}')" if shown else ""

    def _text(
        self, record: list[str], column: int, targets: int | None, width: int, where: str, bad: BadInputs
    ) -> str | None:
        """Return a record's text, or None if the record has too few or too many fields or cannot be decoded."""
        if max(column, targets or 0) >= len(record):
            bad.add("a record with too few fields", f"{where}: {len(record)}")
            return None
        if any(record[width:]):
            # The extra fields may be the rest of the text after an unquoted delimiter.
            bad.add("a record with too many fields", f"{where}: {len(record)} under a header of {width}")
            return None
        text = record[column]
        try:
            text.encode()
            record[column if targets is None else targets].encode()
        except UnicodeEncodeError:
            bad.add(encodings.fault(self.encoding), where)
            return None
        return text


def open_records(stream: IO[bytes], file: File, delimiter: str | None = None) -> Any:
    """Return a ``csv.reader`` of a file in UTF-8. Bytes that are not UTF-8 become lone surrogates.

    If ``delimiter`` is None, the file's suffix determines it.
    """
    # Without a limit, a field with an unclosed quote would extend to the end of the file.
    csv.field_size_limit(MOST_BYTES)
    lines = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    delimiter = delimiter or ("\t" if files.plain_name(file.name).endswith(".tsv") else ",")
    return csv.reader(lines, delimiter=delimiter, strict=True)


def well_formed(records: Any, file: File, bad: BadInputs) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and fields of each well-formed record after the header. The others are counted in ``bad``."""
    number = malformed_lines = 0
    while True:
        number += 1
        before = records.line_num
        try:
            record = next(records, None)
        except csv.Error as error:
            bad.add("malformed record", f"{file.name} record {number}: {error}")
            malformed_lines += records.line_num - before
            continue
        if record is None:
            break
        yield number, record
    # An unclosed quote can swallow thousands of records.
    bad.lost_bytes += file.size * malformed_lines // records.line_num


def other_delimiter(header: list[str]) -> str:
    """Return the delimiter that a header's only column contains, as text, or an empty string."""
    marks = [mark for mark in _DELIMITERS if len(header) == 1 and mark in header[0]]
    return "\\t" if marks[:1] == ["\t"] else "".join(marks[:1])
