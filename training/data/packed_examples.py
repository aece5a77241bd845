"""Chat examples packed into rows, for fine-tuning without padding.

A step has exactly the examples that it would have without packing, so the loss and the number of steps are the same.
Only their layout differs: instead of a row per example, padded to the longest, each micro-batch has a few rows of
several examples each. Examples do not attend to each other, because each one is marked as a document.

The rows of a step are about equally long. They are filled by the longest-processing-time rule (Graham 1969, "Bounds on
Multiprocessing Timing Anomalies"): every example, longest first, goes into the row with the fewest tokens. There are as
few rows as the maximum length permits.
"""

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.data.chat import ChatExamples
from training.data.order import sample_indices
from training.data.replay import Item, Replay

#: Number of steps whose sizes are computed in one call.
_STEPS_AT_ONCE = 1 << 12


class PackedExampleData:
    """Global batches of shuffled examples, packed into rows. A step's examples are the same for any number of ranks.

    Resuming needs no saved state, because a step's rows depend only on the seed, the step and the number of
    micro-batches.
    """

    def __init__(
        self, examples: ChatExamples, global_batch: int, max_length: int, seed: int, replay: Replay | None = None
    ) -> None:
        """Initialize the order of examples.

        Args:
            examples: the examples, of at most ``max_length`` tokens.
            global_batch: examples per optimizer step.
            max_length: maximum tokens per row.
            seed: determines the order.
            replay: samples of pretraining text to add to every step, of at most ``max_length`` tokens.
        """
        self._examples, self._global_batch, self._max_length, self._seed = examples, global_batch, max_length, seed
        self._replay = replay

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """Return this rank's micro-batches of optimizer step ``step``. A micro-batch has ``micro_batch`` examples on
        average.
        """
        indices = sample_indices(step * self._global_batch, self._global_batch, len(self._examples), self._seed)
        items = [self._examples.item(index) for index in indices.tolist()]
        items += self._replay.items(step) if self._replay else []
        groups = rows_by_group(items, self._global_batch // micro_batch, self._max_length)
        return [packed(groups[at], self._examples.pad_id) for at in range(rank, len(groups), ranks)]

    def epochs(self, steps: int) -> dict[str, float]:
        """Return the number of passes over the examples in ``steps`` steps."""
        return {"the examples": steps * self._global_batch / len(self._examples)}

    def tokens_per_example(self, steps: int) -> float:
        """Return the tokens per example, including replayed text, in the largest of the first ``steps`` steps."""
        most = 0
        for first in range(0, steps, _STEPS_AT_ONCE):
            count = min(_STEPS_AT_ONCE, steps - first)
            positions = (first * self._global_batch, count * self._global_batch)
            lengths = self._examples.lengths(sample_indices(*positions, len(self._examples), self._seed))
            most = max(most, int(lengths.reshape(count, -1).sum(1).max()))
        return (most + (self._replay.tokens if self._replay else 0)) / self._global_batch


def packed_in_order(examples: ChatExamples, batch: int, max_length: int) -> list[Batch]:
    """Return batches that contain every example once, in file order, ``batch`` examples in each, packed into rows."""
    batches = []
    for first in range(0, len(examples), batch):
        items = [examples.item(index) for index in range(first, min(first + batch, len(examples)))]
        (rows,) = rows_by_group(items, 1, max_length)
        batches.append(packed(rows, examples.pad_id))
    return batches


def rows_by_group(items: Sequence[Item], groups: int, capacity: int) -> list[list[list[Item]]]:
    """Divide items into rows of at most ``capacity`` tokens, and the rows into groups of about equally many rows.

    Args:
        items: at least as many as ``groups``, of at most ``capacity`` inputs each.
        groups: number of groups.
        capacity: maximum tokens per row.

    Returns:
        The items in each row of each group, in the given order. No group and no row is empty.
    """
    sizes = [item.inputs for item in items]
    order = np.argsort(-np.array(sizes), kind="stable").tolist()
    # If the rows do not fit, more of them will, at the latest when every example has its own.
    count = -(-max(1, -(-sum(sizes) // capacity)) // groups) * groups
    while (rows := _filled(order, sizes, count, capacity)) is None:
        count += groups
    # There may be more rows than items. The empty ones are last, and would leave entire groups without a token.
    ordered = [[items[place] for place in sorted(row)] for row in rows if row]
    bounds = [len(ordered) * group // groups for group in range(groups + 1)]
    return [ordered[first:end] for first, end in pairwise(bounds)]


def _filled(order: Sequence[int], sizes: Sequence[int], count: int, capacity: int) -> list[list[int]] | None:
    """Distribute examples over ``count`` rows, longest first. Returns the rows, fullest first, or None if one is full.

    A group of rows is padded to the longest of them, so rows of similar lengths are next to each other.
    """
    heap = [(0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for example in order:
        size, row = heap[0]
        if size + sizes[example] > capacity:
            return None
        rows[row].append(example)
        heapq.heapreplace(heap, (size + sizes[example], row))
    return [rows[row] for _, row in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]


def packed(rows: Sequence[Sequence[Item]], pad_id: int) -> Batch:
    """Return a batch with several items in each row.

    The batch marks the starts of their documents, and of the padding at the end of a row.
    """
    width = max(sum(item.inputs for item in row) for row in rows)
    inputs = np.full((len(rows), width), pad_id, np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    starts: list[int] = []
    for number, row in enumerate(rows):
        at = 0
        for item in row:
            end = at + item.inputs
            inputs[number, at:end], labels[number, at:end] = item.ids[:-1], item.labels[1:]
            starts += (number * width + at + item.starts).tolist()
            at = end
        if at < width:
            starts.append(number * width + at)
    ends = np.array([*starts, len(rows) * width], np.int32)
    return Batch(torch.from_numpy(inputs), torch.from_numpy(labels), torch.from_numpy(ends))
