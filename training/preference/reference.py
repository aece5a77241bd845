"""The reference's log-probabilities of all answers, computed once from a stage's start weights.

They are kept in the stage's folder, as ``reference/SPLIT.npy`` [n, 2] float32 (chosen, rejected) with a manifest.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artefacts import atomic, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.progress import log
from artefacts.training_folder import TrainingRun
from training.data.preferences import PreferenceExamples
from training.distributed.ranks import Ranks, broadcast_value, sum_over_ranks
from training.objective import Objective
from training.preference.objective import log_probabilities

#: The subfolder of a training folder.
REFERENCE = "reference"


@dataclass(frozen=True)
class Reference:
    """The reference log-probabilities of a stage's examples.

    Attributes:
        folder: the stage's training folder.
        inputs: fingerprints of the examples and of the start weights.
        splits: name -> examples of a split.
        objective: runs the model on a batch.
        batch: pairs per forward pass.
    """

    folder: Path
    inputs: Mapping[str, str]
    splits: Mapping[str, PreferenceExamples]
    objective: Objective
    batch: int

    def is_missing(self) -> bool:
        """Return whether the artefact is missing, damaged, or of other examples or weights."""
        return self.read() is None

    def read(self) -> dict[str, NDArray[np.float32]] | None:
        """Return each split's log-probabilities [n, 2], or None if the artefact is missing, damaged or outdated."""
        return read_reference(self.folder, self.inputs, {name: len(split) for name, split in self.splits.items()})

    def compute(self, engine: Any, ranks: Ranks) -> None:
        """Compute the log-probabilities with the start weights, and publish them. Collective.

        The batches are spread over the ranks. ``engine`` must hold the stage's start weights.
        """
        engine.eval()
        values = {name: self._of_split(engine, ranks, split) for name, split in self.splits.items()}
        engine.train()
        if ranks.first:
            self._publish(values)
            pairs = sum(map(len, values.values()))
            log(f"reference log-probabilities of {pairs:,} pairs: {self.folder / REFERENCE}")

    def install(self, ranks: Ranks) -> None:
        """Add the log-probabilities to the examples, whose batches contain them from now on. Collective.

        Raises:
            RequestError: the artefact is missing or damaged.
        """
        values = broadcast_value(self.read() if ranks.first else None)
        if values is None:
            raise RequestError(f"{self.folder / REFERENCE} is missing or damaged: run the command again")
        for name, split in self.splits.items():
            split.reference = values[name]

    @torch.no_grad()
    def _of_split(self, engine: Any, ranks: Ranks, split: PreferenceExamples) -> NDArray[np.float32]:
        """Return a split's log-probabilities [n, 2], the same on every rank."""
        values = torch.zeros(len(split), 2)
        firsts = range(0, len(split), self.batch)
        for place in range(ranks.rank, -(-len(firsts) // ranks.size) * ranks.size, ranks.size):
            # Under expert parallelism a forward pass is a collective. A rank without a batch repeats the first one.
            first = firsts[place] if place < len(firsts) else 0
            rows = np.arange(first, min(first + self.batch, len(split)))
            logs = log_probabilities(self.objective, engine, split.read(rows).to(ranks.device))
            if place < len(firsts):
                values[rows] = logs.view(2, -1).T.cpu()
        return sum_over_ranks(values).numpy()

    def _publish(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        work = atomic.temp_path(self.folder / REFERENCE)
        for old in self.folder.glob(f".{REFERENCE}.*.partial"):
            shutil.rmtree(old)
        work.mkdir()
        for name, table in values.items():
            np.save(work / f"{name}.npy", table)
        counts = {name: len(table) for name, table in values.items()}
        files = manifest.describe_files(work)
        manifest.write(work, Manifest(REFERENCE, {}, dict(self.inputs), manifest.versions("torch"), counts, files))
        if (self.folder / REFERENCE).exists():
            shutil.rmtree(self.folder / REFERENCE)  # damaged, or of other weights: it is never used
        atomic.rename_folder(work, self.folder / REFERENCE)


def reference_inputs(run: TrainingRun) -> dict[str, str]:
    """Return the fingerprints of what a stage's reference log-probabilities are computed from."""
    return {name: run.inputs[name] for name in ("examples", "weights")}


def read_reference(
    folder: Path, inputs: Mapping[str, str], sizes: Mapping[str, int]
) -> dict[str, NDArray[np.float32]] | None:
    """Return each split's log-probabilities [n, 2] from a training folder. The arguments are as in ``Reference``.

    Returns:
        The tables by split, or None if the artefact is missing, damaged, or of other examples or weights.
    """
    try:
        if manifest.faults(folder / REFERENCE):
            return None
        saved = manifest.read(folder / REFERENCE)
        if saved is None or saved.inputs != dict(inputs):
            return None
        tables = {name: np.load(folder / REFERENCE / f"{name}.npy") for name in sizes}
    except (RequestError, OSError, ValueError):
        return None
    return tables if all(tables[name].shape == (size, 2) for name, size in sizes.items()) else None
