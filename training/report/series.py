"""Prepares data for plots: extracts columns from records, and smooths and thins them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Maximum number of points per curve. More would make the page larger without a visible difference.
MAX_POINTS = 2000


def column(records: Sequence[dict[str, Any]], key: str) -> tuple[Array, Array]:
    """Return (steps [S], values [S]) from the records that have the key."""
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def smooth(values: Array) -> Array:
    """Return a moving average [S] over about 1/40 of the points, ignoring NaN and infinity.

    The window is centered. It shrinks toward the start, where a loss falls steeply, and is truncated at the end.
    """
    count = len(values)
    reach = max(2, count // 80)
    index = np.arange(count)
    low = index - np.minimum(reach, index)
    high = np.minimum(index + np.minimum(reach, index) + 1, count)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[high] - sums[low]) / (counts[high] - counts[low])


def thin(steps: Array, values: Array, points: int = MAX_POINTS) -> tuple[Array, Array]:
    """Reduce a curve to at most ``points`` points: the minimum and maximum of each interval, so that spikes remain."""
    if len(steps) <= points:
        return steps, values
    edges = np.linspace(0, len(steps), points // 2 + 1).astype(int)
    kept: set[int] = set()
    for low, high in pairwise(edges.tolist()):
        interval = values[low:high]
        kept.add(low + int(np.argmin(interval)))
        kept.add(low + int(np.argmax(interval)))
    chosen = np.array(sorted(kept))
    return steps[chosen], values[chosen]


def bin_columns(steps: Array, rows: Array, columns: int) -> Array:
    """Average ``rows`` [S, E] over equal intervals of steps and return [columns, E].

    For an empty interval, the last row before it is repeated.
    """
    edges = np.linspace(steps[0], steps[-1], columns + 1)
    starts = np.searchsorted(steps, edges[:-1], side="left")
    ends = np.append(starts[1:], len(steps))
    return np.stack(
        [
            rows[low:high].mean(axis=0) if high > low else rows[max(low - 1, 0)]
            for low, high in zip(starts, ends, strict=True)
        ]
    )


def expert_layers(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the layers with routers, in the model's order."""
    return list(dict.fromkeys(layer for record in records for layer in record.get("experts", {})))


def expert_rows(records: Sequence[dict[str, Any]], layer: str, key: str) -> tuple[Array, Array]:
    """Return (steps [S], values [S, E]) for a layer's ``load`` or ``bias``, or values [S, 1] for a scalar key."""
    logged = [record for record in records if layer in record.get("experts", {})]
    values = np.array([record["experts"][layer][key] for record in logged], dtype=np.float64)
    return np.array([record["step"] for record in logged], dtype=np.float64), values.reshape(len(logged), -1)


def totals(records: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the run's total (target tokens, seconds). A record represents all steps since the previous record."""
    tokens, seconds, previous = 0.0, 0.0, 0
    for record in records:
        gap = record["step"] - previous
        tokens, seconds = tokens + gap * record["targets"], seconds + gap * record["seconds"]
        previous = record["step"]
    return tokens, seconds
