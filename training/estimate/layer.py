"""Memory of a layer of any family, and the attention weights that the CPU path of all families keeps."""

from dataclasses import dataclass

from training.block_sizes import QUERY_BLOCK


@dataclass(frozen=True)
class Layer:
    """Bytes of one layer: kept from forward to backward, and the most that each pass takes in addition."""

    kept: float
    forward: float
    backward: float


def block_weights(length: int, keys: int | None = None, window: int | None = None) -> int:
    """Softmax weights that attention in blocks of queries keeps per sequence and head.

    A block attends to all keys up to its last query; with ``keys`` to that many, as in bidirectional attention; with a
    window only to the keys that any of its queries reaches.
    """
    total = 0
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        first = 0 if window is None else max(0, start - window + 1)
        last = end if keys is None else keys if window is None else min(keys, end + window - 1)
        total += (end - start) * (last - first)
    return total
