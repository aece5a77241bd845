"""Pretraining's global batches: shuffled samples of one data set, or of several by weight."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from artefacts.errors import RequestError
from training.data.batch import Batch, Samples, read_several
from training.data.order import Mixture

#: Samples whose order is worked out at a time.
_TOGETHER = 1 << 14


class PretrainingData:
    """Global batches of shuffled samples: batch ``step`` is the same on any number of ranks.

    Its only state is the step that is asked for: ``step * global_batch`` samples were consumed before it.
    """

    def __init__(
        self, sources: Mapping[str, Samples], global_batch: int, seed: int, weights: Mapping[str, float] | None = None
    ) -> None:
        """``weights``: of several sources, each one's share of the samples, in proportion.

        Raises:
            RequestError: a source holds less than one sample.
        """
        # By name, so that the order in which a recipe lists its sources is of no account.
        names = sorted(sources)
        for name in names:
            if not len(sources[name]):
                raise RequestError(
                    f"{name}: the training shards hold less than one sample of {sources[name].context_length} tokens: "
                    "gather more text or lower train.context_length"
                )
        self._names, self._sources = names, [sources[name] for name in names]
        shares = [weights[name] if weights else 1.0 for name in names]
        self._mixture = Mixture([len(source) for source in self._sources], shares, seed)
        self._global_batch = global_batch
        self._known: tuple[int, ...] = ()
        self._located: tuple[NDArray[np.int64], NDArray[np.int64]]

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """This rank's micro-batches of optimiser step ``step``."""
        return read_several(self._sources, *self._samples(step, rank, ranks, micro_batch)).batches(micro_batch)

    def _samples(
        self, step: int, rank: int, ranks: int, micro_batch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Data sets and indices of a rank's samples, worked out for some steps together: few are no less work."""
        own = self._global_batch // ranks
        together = -(-_TOGETHER // own)
        first = step // together * together
        if self._known != (first, rank, ranks, micro_batch):
            positions = first * self._global_batch + np.arange(together * self._global_batch, dtype=np.int64)
            self._located = self._mixture.locate(positions.reshape(-1, ranks, micro_batch)[:, rank].ravel())
            self._known = (first, rank, ranks, micro_batch)
        here = slice((step - first) * own, (step - first + 1) * own)
        chosen, indices = self._located
        return chosen[here], indices[here]

    def epochs(self, steps: int) -> dict[str, float]:
        """How many times over each source is read in so many steps."""
        return dict(zip(self._names, self._mixture.epochs(steps * self._global_batch), strict=True))
