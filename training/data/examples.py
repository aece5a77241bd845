"""Shared code for example datasets: reading Parquet files, ordering, batching and padding."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from artefacts import command_hints, repair_hints
from artefacts.errors import RequestError
from training.data.batch import Batch
from training.data.order import sample_indices

Indices = Sequence[int] | NDArray[np.int64]


class Lists:
    """Lists of int32, stored back to back in one array."""

    def __init__(self, column: pyarrow.ChunkedArray) -> None:
        """Copy a column of lists, which must not contain nulls."""
        values = [chunk.flatten().to_numpy() for chunk in column.chunks]
        lengths = [compute.list_value_length(chunk).to_numpy() for chunk in column.chunks]
        self._values = np.concatenate([np.zeros(0, np.int32), *values])
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self._values[self._starts[index] : self._starts[index + 1]]

    def lengths(self, indices: Indices) -> NDArray[np.int64]:
        """Return the lengths of the lists at the given indices, [B] int64."""
        chosen = np.asarray(indices, np.int64)
        return self._starts[chosen + 1] - self._starts[chosen]

    def padded(self, indices: Indices, fill: int) -> NDArray[np.int64]:
        """Return the lists at the given indices as [B, T] int64, padded with ``fill`` to the longest of them."""
        rows = np.full((len(indices), int(self.lengths(indices).max())), fill, np.int64)
        for row, index in zip(rows, indices, strict=True):
            values = self[index]
            row[: len(values)] = values
        return rows


def read_columns(folder: Path, split: str, names: list[str], target: str) -> pyarrow.Table:
    """Read columns of the files ``SPLIT-*.parquet`` in a folder.

    Args:
        folder: the folder of examples.
        split: the split's name.
        names: the columns to read.
        target: the make target that builds the files, for the error message.

    Raises:
        RequestError: there are no examples, they are of another kind, or a file is damaged.
    """
    tables = []
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        with repair_hints.reading("examples", path):
            present = pq.read_schema(path).names
            if missing := [name for name in names if name not in present]:
                raise RequestError(
                    f"{path} has no column {missing[0]}: the examples were made for another method; run "
                    f"`{command_hints.make(target)}`"
                )
            tables.append(pq.read_table(path, columns=names))
    table = pyarrow.concat_tables(tables) if tables else pyarrow.table({})
    if not len(table):
        raise RequestError(f"{folder}: no {split} examples; run `{command_hints.make(target)}`")
    return table


class Examples(ABC):
    """The examples of one split, held in memory."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: Indices) -> Batch:
        """Return the examples at the given indices, padded to the longest of them."""

    def in_order(self, batch: int) -> list[Batch]:
        """Return batches that contain every example once, in file order."""
        return self._batches(np.arange(len(self)), batch)

    def shuffled(self, batch: int, seed: int) -> list[Batch]:
        """Return batches that contain every example once, in an order that depends on the seed."""
        return self._batches(sample_indices(0, len(self), len(self), seed), batch)

    def spread(self, count: int, batch: int) -> list[Batch]:
        """Return batches with at most ``count`` examples in total, taken at even intervals from all examples."""
        return self._batches(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)), batch)

    def _batches(self, indices: NDArray[Any], size: int) -> list[Batch]:
        return [self.read(indices[first : first + size]) for first in range(0, len(indices), size)]


class ExampleData:
    """Global batches of shuffled examples. A step's batch is the same for any number of ranks."""

    def __init__(self, examples: Examples, global_batch: int, seed: int) -> None:
        self._examples, self._global_batch, self._seed = examples, global_batch, seed

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """Return this rank's micro-batches of optimizer step ``step``."""
        indices = sample_indices(step * self._global_batch, self._global_batch, len(self._examples), self._seed)
        per_micro_batch = indices.reshape(-1, ranks, micro_batch)[:, rank]
        return [self._examples.read(rows) for rows in per_micro_batch]

    def epochs(self, steps: int) -> dict[str, float]:
        """Return the number of passes over the examples in ``steps`` steps."""
        return {"the examples": steps * self._global_batch / len(self._examples)}
