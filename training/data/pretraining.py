"""Global batches for pretraining: shuffled samples from one dataset, or from a weighted mixture of several."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from artefacts.errors import RequestError
from training.data.batch import Batch, Samples, read_several
from training.data.order import Mixture

#: Number of samples whose order is computed in one call.
_ORDERED_AT_ONCE = 1 << 14


class PretrainingData:
    """Global batches of shuffled samples. A step's batch is the same for any number of ranks.

    Resuming needs no saved state: ``step * global_batch`` samples have been consumed before step ``step``.
    """

    def __init__(
        self, sources: Mapping[str, Samples], global_batch: int, seed: int, weights: Mapping[str, float] | None = None
    ) -> None:
        """Initialize the order of samples.

        Args:
            sources: the datasets, by name.
            global_batch: samples per optimizer step.
            seed: determines the order.
            weights: relative number of samples from each source, which need not add up to 1; None weights all equally.

        Raises:
            RequestError: a source holds less than one sample.
        """
        # Sorted, so that the order in which a recipe lists its sources does not matter.
        names = sorted(sources)
        for name in names:
            if not len(sources[name]):
                raise RequestError(
                    f"{name}: the training shards hold less than one sample of {sources[name].context_length} tokens: "
                    "add more text or lower train.context_length"
                )
        self._names, self._sources = names, [sources[name] for name in names]
        shares = [weights[name] if weights else 1.0 for name in names]
        self._mixture = Mixture([len(source) for source in self._sources], shares, seed)
        self._global_batch = global_batch
        self._known: tuple[int, ...] = ()
        self._located: tuple[NDArray[np.int64], NDArray[np.int64]]

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """Return this rank's micro-batches of optimizer step ``step``."""
        return read_several(self._sources, *self._samples(step, rank, ranks, micro_batch)).batches(micro_batch)

    def _samples(
        self, step: int, rank: int, ranks: int, micro_batch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the dataset and index of every sample on this rank. To save time, many steps are computed at once."""
        per_step = self._global_batch // ranks
        steps = -(-_ORDERED_AT_ONCE // per_step)
        first = step // steps * steps
        if self._known != (first, rank, ranks, micro_batch):
            positions = first * self._global_batch + np.arange(steps * self._global_batch, dtype=np.int64)
            self._located = self._mixture.locate(positions.reshape(-1, ranks, micro_batch)[:, rank].ravel())
            self._known = (first, rank, ranks, micro_batch)
        rows = slice((step - first) * per_step, (step - first + 1) * per_step)
        chosen, indices = self._located
        return chosen[rows], indices[rows]

    def epochs(self, steps: int) -> dict[str, float]:
        """Return the number of passes over each source in ``steps`` steps."""
        return dict(zip(self._names, self._mixture.epochs(steps * self._global_batch), strict=True))
