"""What a layer of any family takes of memory, and what all families' attention has in common on CPU."""

from dataclasses import dataclass

#: training/layers/attention.py: rows of queries at a time, and the longest span whose weights are kept.
_BLOCK, LONGEST_BLOCKED = 128, 2048


@dataclass(frozen=True)
class Layer:
    """Bytes of one layer: kept from forward to backward, and what computing it takes on top at its highest."""

    kept: float
    forward: float
    backward: float


def block_weights(length: int, keys: int | None = None, window: int | None = None) -> int:
    """Softmax weights that attention in blocks of queries keeps of a sequence and head.

    A block meets all keys up to its last query's; with ``keys`` that many, as bidirectional attention does; with a
    window those alone that any of its queries reaches.
    """
    total = 0
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        first = 0 if window is None else max(0, start - window + 1)
        last = end if keys is None else keys if window is None else min(keys, end + window - 1)
        total += (end - start) * (last - first)
    return total
