"""Samples of pretraining text for the steps of fine-tuning, so that the model forgets less of what it has learned."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.data.pretraining import PretrainingData


class Item(NamedTuple):
    """An example or a sample of text, to be packed into a row.

    Attributes:
        ids: [N], token ids.
        labels: [N], not shifted, and ``IGNORED`` where nothing is learned.
        starts: [S], the positions in ``ids`` at which documents start. The first is 0.
    """

    ids: NDArray[np.integer]
    labels: NDArray[np.integer]
    starts: NDArray[np.int64]

    @property
    def inputs(self) -> int:
        """Number of inputs: the last token is only a label."""
        return len(self.ids) - 1


class Replay:
    """A fixed number of pretraining samples for every step. They depend only on the step."""

    def __init__(self, text: PretrainingData, samples: int, length: int) -> None:
        """Initialize the replay.

        Args:
            text: global batches of ``samples`` pretraining samples.
            samples: samples per step.
            length: tokens per sample.
        """
        self._text, self.samples, self._length = text, samples, length

    @property
    def tokens(self) -> int:
        """Number of tokens of pretraining text per step."""
        return self.samples * self._length

    def items(self, step: int) -> list[Item]:
        """Return the samples of optimizer step ``step``."""
        (batch,) = self._text.micro_batches(step, 0, 1, self.samples)
        ids = np.concatenate([batch.inputs.numpy(), batch.labels.numpy()[:, -1:]], axis=1)
        first = np.arange(self.samples) * self._length
        starts = first if batch.starts is None else batch.starts.numpy()[:-1].astype(np.int64)
        rows = np.searchsorted(starts, [*first, self.samples * self._length])
        return [
            Item(row, row, starts[rows[number] : rows[number + 1]] - first[number]) for number, row in enumerate(ids)
        ]


def samples_per_step(fraction: float, example_tokens: float, length: int) -> int:
    """Return the number of samples of ``length`` tokens that make up about ``fraction`` of a step's tokens.

    ``example_tokens`` is the mean number of tokens of a step's examples. The result is at least 1.
    """
    return max(1, round(fraction / (1 - fraction) * example_tokens / length))
