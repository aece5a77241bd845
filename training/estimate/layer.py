"""The memory of one layer in a model of any family, and the attention weights that the CPU path saves."""

from dataclasses import dataclass

from training.block_sizes import QUERY_BLOCK


@dataclass(frozen=True)
class Layer:
    """One layer's memory in bytes: tensors saved for the backward pass, and the additional peak during each pass."""

    kept: float
    forward: float
    backward: float


def block_weights(length: int, keys: int | None = None, window: int | None = None) -> int:
    """Count the softmax weights that blocked attention saves per sequence and head.

    A block attends to all keys up to its last query or, if ``keys`` is set, to that many keys (as in bidirectional
    attention). If there is a window, the block attends only to keys inside the window of at least one of its queries.
    """
    total = 0
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        first = 0 if window is None else max(0, start - window + 1)
        last = end if keys is None else keys if window is None else min(keys, end + window - 1)
        total += (end - start) * (last - first)
    return total
