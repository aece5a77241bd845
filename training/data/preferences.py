"""Pairs of a chosen and a rejected answer, each as a row of tokens."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.data.examples import Examples, Indices, Lists, read_columns

_SIDES = ("chosen", "rejected")


class PreferenceExamples(Examples):
    """The pairs of one split (``train`` or ``held-out``). Labels outside answers are ``IGNORED``.

    Attributes:
        reference: [n, 2] float32, the reference model's log-probabilities of the chosen and the rejected answers.
            Batches contain them once they are set.
    """

    reference: NDArray[np.float32] | None = None

    def __init__(self, folder: Path, split: str, pad_id: int) -> None:
        """Read the Parquet files ``SPLIT-*.parquet`` in a folder. ``pad_id`` is the padding token's id.

        Raises:
            RequestError: there are no examples, they are not pairs, or a file is damaged.
        """
        names = [f"{kind}_{side}" for kind in ("ids", "labels") for side in _SIDES]
        table = read_columns(folder, split, names, "examples")
        columns = {name: Lists(table[name]) for name in names}
        self._ids = [columns[f"ids_{side}"] for side in _SIDES]
        self._labels = [columns[f"labels_{side}"] for side in _SIDES]
        self._pad = pad_id

    def __len__(self) -> int:
        return len(self._ids[0])

    @property
    def tokens(self) -> int:
        """Number of tokens in all answers and their prompts."""
        return sum(int(side.lengths(range(len(self))).sum()) for side in self._ids)

    def read(self, indices: Indices) -> Batch:
        """Return n pairs as 2n rows: the chosen answers, then the rejected ones in the same order.

        Both are in one batch, because under expert parallelism a forward pass is a collective.
        """
        ids = [side[index] for side in self._ids for index in indices]
        labels = [side[index] for side in self._labels for index in indices]
        shape = (len(ids), max(map(len, ids)) - 1)
        inputs_BT, labels_BT = np.full(shape, self._pad, np.int64), np.full(shape, IGNORED, np.int64)
        for row, (tokens, targets) in enumerate(zip(ids, labels, strict=True)):
            # A row's last token is only a label, and its first token only an input.
            inputs_BT[row, : len(tokens) - 1] = tokens[:-1]
            labels_BT[row, : len(tokens) - 1] = targets[1:]
        reference = None
        if self.reference is not None:
            reference = torch.from_numpy(self.reference[np.asarray(indices, np.int64)].T.flatten())
        return Batch(torch.from_numpy(inputs_BT), torch.from_numpy(labels_BT), reference=reference)
