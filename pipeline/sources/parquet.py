"""Parquet files: one document per row, with the text in one column.

Only the text column (and the target column, if any) is read, one row group at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, NamedTuple

from artefacts.errors import RequestError
from pipeline.document import Document
from pipeline.sources import file_source
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Part
from pipeline.sources.file_source import FileSource
from pipeline.sources.storage import files
from pipeline.sources.storage.files import File

#: Maximum rows and approximate bytes of text to hold at a time, in addition to a page of the column.
_BATCH_ROWS = 1000
_BATCH_BYTES = 4 << 20
_BUFFER_BYTES = 8 << 20


class RowGroups(NamedTuple):
    """Row groups [first, stop) of a file. If ``stop`` is 0, the file's footer is unreadable.

    Attributes:
        row: index of the first row in the file.
        rows: number of rows.
        size: stored size in bytes, including other columns.
    """

    file: File
    first: int
    stop: int
    row: int
    rows: int
    size: int


@dataclass(frozen=True)
class ParquetSource(FileSource):
    """Rows from Parquet files.

    Attributes:
        path: file, folder, glob or URL of .parquet files.
        text_field: the text column. ``meta.body`` means the field ``body`` of the column ``meta``, unless there is a
            column named ``meta.body``.
        target_field: the target column, named in the same way, or None if there is none. Targets can also be integers
            or booleans.
    """

    text_field: str
    target_field: str | None = None

    endings: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    @property
    def most_bytes(self) -> int:
        """Maximum stored (compressed) bytes per part."""
        return file_source.part_bytes(self.size(1) or 0, file_source.COMPRESSED_PART_BYTES)

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part. Parts consist of ``RowGroups``."""
        return file_source.grouped(((piece.size, piece) for piece in self._groups()), self.most_bytes)

    def _groups(self) -> Iterator[RowGroups]:
        import pyarrow
        import pyarrow.parquet as parquet

        for file in self.files.values():
            try:
                with file.open() as stream:
                    metadata = parquet.read_metadata(stream)
            except (pyarrow.ArrowException, *files.DAMAGE):
                yield RowGroups(file, 0, 0, 0, 0, file.size)
                continue
            yield from _ranges(file, metadata, self.most_bytes)

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        import pyarrow

        bad.bytes += part.size
        for piece in part.where:
            rows = 0
            try:
                with piece.file.open() as stream:
                    for document in self._rows(stream, piece, bad):
                        rows += 1
                        if document is not None:
                            yield document
            except (pyarrow.ArrowException, *files.DAMAGE) as error:
                where = piece.file.name
                where += f", row groups {piece.first} to {piece.stop - 1}" if piece.stop else ""
                lost = piece.size - piece.size * rows // max(piece.rows, 1)
                bad.add("unreadable file", f"{where}: {' '.join(str(error).split())}", lost)

    def _rows(self, stream: Any, piece: RowGroups, bad: BadInputs) -> Iterator[Document | None]:
        """Yield each row's document, or None if the row has no text or no valid target."""
        import pyarrow.parquet as parquet

        # Read columns through a buffer, because a row group can be as large as the file.
        opened = parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        check_column(opened.schema_arrow, self.text_field, piece.file.name, f"{self.key}.text_field")
        columns = [self.text_field]
        if self.target_field:
            key = f"{self.key}.target_field"
            check_column(opened.schema_arrow, self.target_field, piece.file.name, key, labels=True)
            columns.append(self.target_field)
        name, row = piece.file.name, piece.row
        for group in range(piece.first, piece.stop):
            rows = _batch_rows(opened.metadata.row_group(group), self.text_field)
            for batch in opened.iter_batches(rows, [group], columns, use_threads=False):
                targets = self._targets(batch)
                for text in texts_of(column_of(batch, self.text_field), name, row, bad):
                    target, fault = next(targets)
                    if text is None or fault:
                        if text is not None:
                            bad.good -= 1
                            bad.add(fault, f"{name} row {row}")
                        yield None
                    else:
                        yield Document(f"parquet:{name}:{row}", text, name, "record", target)
                    row += 1

    def _targets(self, batch: Any) -> Iterator[tuple[str | None, str]]:
        """Yield each row's target (None without ``target_field``) and an error message ("" if the target is valid)."""
        import pyarrow
        import pyarrow.types as types

        if self.target_field is None:
            return repeat((None, ""))
        column = column_of(batch, self.target_field)
        if types.is_integer(column.type) or types.is_boolean(column.type):
            column = column.cast(pyarrow.large_string())
        return map(_target, _values(column))


def _batch_rows(group: Any, field: str) -> int:
    """Return how many rows of a row group contain about ``_BATCH_BYTES`` of text, estimated from the metadata."""
    columns = (group.column(number) for number in range(group.num_columns))
    size = next((column.total_uncompressed_size for column in columns if column.path_in_schema == field), 0)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(size, 1)))


def _ranges(file: File, metadata: Any, most: int) -> Iterator[RowGroups]:
    """Group a file's row groups into ranges of about ``most`` stored bytes. The sizes add up to the file's size."""
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    total = sum(sizes) or 1
    first = row = rows = size = 0
    for group, group_size in enumerate(sizes):
        rows += metadata.row_group(group).num_rows
        size += group_size
        if file.size * size // total >= most or group + 1 == len(sizes):
            yield RowGroups(file, first, group + 1, row, rows, file.size * size // total)
            first, row, size, rows = group + 1, row + rows, 0, 0


def check_column(schema: Any, name: str, where: str, key: str, labels: bool = False) -> None:
    """Check that a table has a text column with this name.

    Args:
        schema: ``pyarrow.Schema`` of the table.
        name: name of the column.
        where: name of the table, for messages.
        key: the recipe key that names the column.
        labels: also allow integers and booleans.

    Raises:
        RequestError: the column is missing or is not text. The message lists the columns.
    """
    import pyarrow.types as types

    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    kind = _kind_of(schema, name)
    if kind is None:
        raise RequestError(f"{key}: {where} has no column {name!r}; its columns are: {listed}")
    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    tests += (types.is_integer, types.is_boolean) if labels else ()
    if not any(test(kind) for test in (*tests, types.is_null)):
        raise RequestError(f"{key}: column {name!r} of {where} is not text; its columns are: {listed}")


def _kind_of(schema: Any, name: str) -> Any:
    """Return the type of a column or (dotted) nested field, or None if it doesn't exist."""
    import pyarrow.types as types

    if name in schema.names:
        return schema.field(name).type
    first, *inner = name.split(".")
    if first not in schema.names:
        return None
    kind = schema.field(first).type
    for part in inner:
        if not types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def column_of(table: Any, name: str) -> Any:
    """Return a column or (dotted) nested field of a table or batch. ``check_column`` must have accepted the name."""
    import pyarrow.compute as compute

    if name in table.schema.names:
        return table.column(name)
    first, *inner = name.split(".")
    column = table.column(first)
    for part in inner:
        column = compute.struct_field(column, part)
    return column


def texts_of(column: Any, name: str, first: int, bad: BadInputs) -> Iterator[str | None]:
    """Yield the text of each row of an Arrow column. A row without text yields None and is counted in ``bad``.

    About ``_BATCH_BYTES`` of Python strings are created at a time. ``first`` is the index of the column's first row in
    the file ``name``.
    """
    step = max(1, len(column) * _BATCH_BYTES // max(column.nbytes, 1))
    for at in range(0, len(column), step):
        yield from _converted(column.slice(at, step), name, first + at, bad)


def records_of(table: Any, name: str, first: int, bad: BadInputs) -> Iterator[dict[str, Any] | None]:
    """Yield each row of an Arrow table or batch. A row that is not valid UTF-8 yields None and is counted in ``bad``.

    ``first`` is the index of the table's first row in the file ``name``.
    """
    step = max(1, len(table) * _BATCH_BYTES // max(table.nbytes, 1))
    for at in range(0, len(table), step):
        piece = table.slice(at, step)
        try:
            yield from piece.to_pylist()
        except UnicodeDecodeError:
            for row in range(len(piece)):
                try:
                    (record,) = piece.slice(row, 1).to_pylist()
                except UnicodeDecodeError:
                    bad.add("invalid UTF-8", f"{name} row {first + at + row}")
                    record = None
                yield record


def _values(column: Any) -> list[str | bytes | None]:
    """Return the values of a text column. They are strings, or bytes if any of them is not valid UTF-8."""
    import pyarrow

    try:
        values: list[str | bytes | None] = column.to_pylist()
    except UnicodeDecodeError:
        plain = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
        values = plain.cast(pyarrow.large_binary()).to_pylist()
    return values


def _target(value: str | bytes | None) -> tuple[str | None, str]:
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None, "invalid UTF-8"
    return (value, "") if value and value.strip() else (None, "empty target")


def _converted(column: Any, name: str, first: int, bad: BadInputs) -> Iterator[str | None]:
    for row, value in enumerate(_values(column), first):
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError:
                bad.add("invalid UTF-8", f"{name} row {row}")
                value = None
        elif value is None:
            bad.add("no text (null)", f"{name} row {row}")
        if value is not None:
            bad.good += 1
        yield value
