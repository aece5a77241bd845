"""The cleaned documents' files, read by column and row group; damage is named with its cure."""

from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from artefacts import repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest


def of_sources(folder: Path, made: Manifest) -> dict[str, list[Path]]:
    """The files of each source.

    Raises:
        RequestError: the documents are of a Millrace that did not note them.
    """
    if "files" not in made.details:
        raise RequestError(f"{folder}: of an earlier version; {repair_hints.cure('documents', folder)}")
    return {name: [folder / file for file in files] for name, files in made.details["files"].items()}


def read_column(path: Path, column: str) -> pyarrow.ChunkedArray:
    """One column of a file.

    Raises:
        RequestError: the file is damaged.
    """
    with repair_hints.reading("documents", path):
        return parquet.read_table(path, columns=[column])[column]


def group_rows(path: Path) -> list[int]:
    """Rows of each row group of a file.

    Raises:
        RequestError: the file is damaged.
    """
    with repair_hints.reading("documents", path):
        facts = parquet.ParquetFile(path).metadata
    return [facts.row_group(group).num_rows for group in range(facts.num_row_groups)]


def read_group(path: Path, group: int, columns: list[str]) -> pyarrow.Table:
    """Some columns of one row group of a file.

    Raises:
        RequestError: the file is damaged.
    """
    with repair_hints.reading("documents", path):
        return parquet.ParquetFile(path).read_row_group(group, columns=columns)


def group_bytes(path: Path) -> list[int]:
    """Bytes of text of each row group of a file, before compression.

    Raises:
        RequestError: the file is damaged.
    """
    with repair_hints.reading("documents", path):
        facts = parquet.ParquetFile(path).metadata
    column = facts.schema.to_arrow_schema().get_field_index("text")
    return [facts.row_group(group).column(column).total_uncompressed_size for group in range(facts.num_row_groups)]
