"""Read the documents artefact by column and row group. Errors about damaged files say how to repair them."""

from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from artefacts import repair_hints
from artefacts.manifest import Manifest


def files_by_source(folder: Path, documents: Manifest) -> dict[str, list[Path]]:
    """Return the files of each source, in order."""
    return {name: [folder / file for file in files] for name, files in documents.details["files"].items()}


def read_column(path: Path, column: str) -> pyarrow.ChunkedArray:
    """Read one column of a file.

    Raises:
        RequestError: the file is damaged.
    """
    with repair_hints.reading("documents", path):
        return parquet.read_table(path, columns=[column])[column]


def group_rows(path: Path, artefact: str = "documents") -> list[int]:
    """Return the number of rows in each row group of a file. ``artefact`` is the artefact's name, for messages.

    Raises:
        RequestError: the file is damaged.
    """
    with repair_hints.reading(artefact, path):
        metadata = parquet.ParquetFile(path).metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_group(path: Path, group: int, columns: list[str], artefact: str = "documents") -> pyarrow.Table:
    """Read some columns of one row group of a file. ``artefact`` is the artefact's name, for messages.

    Raises:
        RequestError: the file is damaged.
    """
    with repair_hints.reading(artefact, path):
        return parquet.ParquetFile(path).read_row_group(group, columns=columns)


def group_bytes(path: Path) -> list[int]:
    """Return the uncompressed size of the text in each row group of a file, in bytes.

    Raises:
        RequestError: the file is damaged.
    """
    with repair_hints.reading("documents", path):
        metadata = parquet.ParquetFile(path).metadata
    column = metadata.schema.to_arrow_schema().get_field_index("text")
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    return [group.column(column).total_uncompressed_size for group in groups]
