"""Parquet shards ``NAME-00000.parquet``, written one after the other and read by row group."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pyarrow
import pyarrow.parquet as parquet

from artefacts import repair


class ParquetShards:
    """Write tables as row groups into numbered shards of about ``shard_bytes`` of Arrow data, each published whole."""

    def __init__(self, folder: Path, name: str, shard_bytes: int) -> None:
        self._folder, self._name, self._shard_bytes = folder, name, shard_bytes
        self._number = self._size = 0
        self._writer: parquet.ParquetWriter | None = None

    def write(self, table: pyarrow.Table) -> None:
        """Append a table; an empty one is no row group."""
        if not len(table):
            return
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._beside, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=len(table))
        self._size += table.nbytes
        if self._size >= self._shard_bytes:
            self._finish()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}-{self._number:05d}.parquet"

    @property
    def _beside(self) -> Path:
        return self._path.with_name(f".{self._path.name}.partial")

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            os.replace(self._beside, self._path)
            self._writer = None
            self._number, self._size = self._number + 1, 0

    def __enter__(self) -> "ParquetShards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._writer is not None:
            self._writer.close()


def row_groups(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, row group, rows) of every row group of the cleaned documents, in order.

    Raises:
        RequestError: a file is damaged.
    """
    for path in sorted(folder.glob("clean-*.parquet")):
        with repair.reading("documents", path):
            facts = parquet.ParquetFile(path).metadata
        for group in range(facts.num_row_groups):
            yield path, group, facts.row_group(group).num_rows


def read_columns(folder: Path, columns: list[str]) -> pyarrow.Table:
    """Some columns of all the cleaned documents, in order.

    Raises:
        RequestError: a file is damaged.
    """
    tables = []
    for path in sorted(folder.glob("clean-*.parquet")):
        with repair.reading("documents", path):
            tables.append(parquet.read_table(path, columns=columns))
    return pyarrow.concat_tables(tables)


def read_group(path: Path, group: int, columns: list[str]) -> pyarrow.Table:
    """Some columns of one row group of the cleaned documents.

    Raises:
        RequestError: the file is damaged.
    """
    with repair.reading("documents", path):
        return parquet.ParquetFile(path).read_row_group(group, columns=columns)
