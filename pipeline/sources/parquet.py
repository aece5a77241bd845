"""Parquet files: a row a document, its text in one column; read by row groups, that column only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from configs.errors import RequestError
from pipeline.bad_inputs import BadInputs
from pipeline.document import Document
from pipeline.sources import Part, file_source, files
from pipeline.sources.file_source import FileSource
from pipeline.sources.files import File

#: Rows that are held at a time.
_BATCH_ROWS = 1000
_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True)
class ParquetSource(FileSource):
    """Rows of a path, folder, glob or URL.

    Attributes:
        path: file, folder, glob or URL of .parquet.
        text_field: column that holds the text.
    """

    text_field: str

    endings: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    @property
    def most_bytes(self) -> int:
        """Stored bytes of a part; they are compressed."""
        return file_source.part_bytes(self.size(1) or 0, file_source.COMPRESSED_PART_BYTES)

    def parts(self, workers: int) -> Iterator[Part]:
        """Each part: (file, first row group, group to stop at, first row) pieces; stop 0: its footer is unreadable."""
        return file_source.grouped(self._groups(), self.most_bytes)

    def _groups(self) -> Iterator[tuple[int, tuple[File, int, int, int]]]:
        import pyarrow
        import pyarrow.parquet as parquet

        for file in self.files.values():
            try:
                with file.open() as stream:
                    metadata = parquet.read_metadata(stream)
            except (pyarrow.ArrowException, *files.DAMAGE):
                yield file.size, (file, 0, 0, 0)
                continue
            yield from _ranges(file, metadata, self.most_bytes)

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        import pyarrow

        for file, first, stop, row in part.where:
            try:
                with file.open() as stream:
                    yield from self._rows(stream, file, range(first, stop), row, bad)
            except (pyarrow.ArrowException, *files.DAMAGE) as error:
                where = f"{file.name}, row groups {first} to {stop - 1}" if stop else file.name
                bad.add("unreadable file", f"{where}: {' '.join(str(error).split())}")

    def _rows(self, stream: Any, file: File, groups: range, row: int, bad: BadInputs) -> Iterator[Document]:
        import pyarrow.parquet as parquet

        # A column is read through a buffer: a row group may be as large as the file.
        opened = parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES)
        check_column(opened.schema_arrow, self.text_field, file.name)
        columns = [self.text_field]
        for batch in opened.iter_batches(_BATCH_ROWS, list(groups), columns, use_threads=False):
            for text in texts_of(batch.column(0), file.name, row, bad):
                if text is not None:
                    yield Document(f"parquet:{file.name}:{row}", text, file.name, "record")
                row += 1


def _ranges(file: File, metadata: Any, most: int) -> Iterator[tuple[int, tuple[File, int, int, int]]]:
    """Row groups of a file put together up to ``most`` stored bytes; of the file's size each has its share."""
    sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    whole = sum(sizes) or 1
    first = row = rows = size = 0
    for group, group_size in enumerate(sizes):
        rows += metadata.row_group(group).num_rows
        size += group_size
        if file.size * size // whole >= most or group + 1 == len(sizes):
            yield file.size * size // whole, (file, first, group + 1, row)
            first, row, size, rows = group + 1, row + rows, 0, 0


def check_column(schema: Any, name: str, where: str) -> None:
    """Refuse a table, of this ``pyarrow.Schema``, whose column of that name is missing or holds no text.

    Raises:
        RequestError: names the columns that there are.
    """
    import pyarrow.types as types

    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if name not in schema.names:
        raise RequestError(f"data.source.text_field: {where} has no column {name!r}; columns there: {listed}")
    kind = schema.field(name).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    if not any(test(kind) for test in (*tests, types.is_null)):
        raise RequestError(f"data.source.text_field: column {name!r} of {where} is not text; columns there: {listed}")


def texts_of(column: Any, name: str, first: int, bad: BadInputs) -> Iterator[str | None]:
    """The text of each row of an Arrow column; None for a row without, which is counted.

    ``first`` is the number of the column's first row in the file ``name``.
    """
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        import pyarrow

        plain = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
        values = plain.cast(pyarrow.large_binary()).to_pylist()
    for row, value in enumerate(values, first):
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
