"""Second step of the documents stage: find duplicates, and decide which documents are sampled."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from artefacts import atomic, command_hints
from artefacts.errors import RequestError
from artefacts.hashing import Pieces, keyed_hashes, threshold
from artefacts.progress import bar
from configs.schema import Recipe
from configs.schema.clean import CleanSection
from pipeline import dedup, parallel
from pipeline.documents.ingest import finished_parts, kept_path
from pipeline.parallel import ALL_TASKS, TaskShard


def find(recipe: Recipe, parts: Path, task_shard: TaskShard) -> bool:
    """Run a task's comparisons. If one task does all the work, also decide which documents stay and which are sampled.

    Returns:
        Whether these decisions have been made.

    Raises:
        RequestError: a part is not finished, or a key file is damaged.
    """
    counts = finished_parts(parts)
    section = recipe.data.clean
    if dedup.kinds(section):
        _reduce(recipe, parts, dedup.plan(parts, section), task_shard)
        if task_shard == ALL_TASKS:
            dedup.resolve(parts, section)
            _reduce(recipe, parts, dedup.plan_lines(parts, section), task_shard)
    if task_shard != ALL_TASKS:
        return False
    if not _thresholds_path(parts).exists():
        _compute_thresholds(recipe, parts, [part["dataset"] for part in counts])
    return True


def _reduce(recipe: Recipe, parts: Path, tasks: list[dedup.ReduceTask], task_shard: TaskShard) -> None:
    selected = [(parts, recipe.data.clean, task) for number, task in enumerate(tasks) if task_shard.owns(number)]
    with bar(len(selected), "task", "duplicates", disable=not selected) as progress:
        for _ in parallel.ordered(dedup.reduce, selected, parallel.count(recipe.data.workers)):
            progress.update()


def verdict(parts: Path, section: CleanSection, number: int) -> dedup.Verdict:
    """Return the verdict on a part's documents. If deduplication is off, all documents stay."""
    if dedup.kinds(section):
        return dedup.verdict(parts, section, number)
    rows = parquet.read_metadata(kept_path(parts, number)).num_rows
    return dedup.Verdict(np.zeros(rows, np.uint8), np.zeros(0, np.uint32), np.zeros(0, np.uint32))


class SampleThresholds(NamedTuple):
    """Thresholds for sampling: a document is sampled if its hash of (seed, id) is at most its source's threshold.

    Attributes:
        seed: the run's seed.
        by_source: the threshold of each source. If it is None or missing, all of the source's documents are sampled.
    """

    seed: int
    by_source: dict[str, int | None]

    def mask(self, dataset: str, ids: pyarrow.ChunkedArray) -> NDArray[np.bool_]:
        """Return a mask of the documents that are sampled."""
        largest = self.by_source.get(dataset)
        if largest is None:
            return np.ones(len(ids), dtype=bool)
        return _hashes(self.seed, ids) <= np.uint64(largest)


def _hashes(seed: int, ids: pyarrow.ChunkedArray) -> NDArray[np.uint64]:
    return keyed_hashes(seed, "documents", ids.to_pylist())


def _thresholds_path(parts: Path) -> Path:
    return parts / "sample.json"


def _compute_thresholds(recipe: Recipe, parts: Path, owners: list[str]) -> None:
    """Compute and write the threshold of every source with ``sample_bytes``. ``owners`` lists each part's source."""

    def pieces(dataset: str) -> Pieces:
        for number, owner in enumerate(owners):
            if owner == dataset:
                table = parquet.read_table(kept_path(parts, number), columns=["id", "bytes"])
                stays = verdict(parts, recipe.data.clean, number).documents == dedup.KEPT
                table = table.filter(pyarrow.array(stays))
                yield _hashes(recipe.run.seed, table["id"]), table["bytes"].to_numpy()

    thresholds = {
        name: threshold(partial(pieces, name), section.sample_bytes)
        for name, section in recipe.data.named_sources.items()
        if section.sample_bytes
    }
    atomic.write_json(_thresholds_path(parts), thresholds)


def read_thresholds(recipe: Recipe, parts: Path) -> SampleThresholds:
    """Read the thresholds that ``find`` computed.

    Raises:
        RequestError: ``find`` has not finished.
    """
    if not _thresholds_path(parts).exists():
        command = command_hints.python("pipeline dedup")
        raise RequestError(f"duplicates are not resolved yet: run `{command}` (without --task) first")
    return SampleThresholds(recipe.run.seed, atomic.read_json(_thresholds_path(parts)))
