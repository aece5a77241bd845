"""Prepares numbers for plots: columns of records, smoothing, thinning."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: More points per curve make no visible difference and a larger page.
MAX_POINTS = 2000


def column(records: Sequence[dict[str, Any]], key: str) -> tuple[Array, Array]:
    """(steps [S], values [S]) of the records that have the key."""
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    table = np.array(points, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def smooth(values: Array) -> Array:
    """Moving average [S] over about a fortieth of the points; ignores NaN and infinity.

    The window is centered, shrinks towards the start (where a loss falls steeply) and is cut off at the end.
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
    """At most ``points`` points: the lowest and highest of every interval, so that no spike is lost."""
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
    """Mean of ``rows`` [S, E] in equal intervals of steps -> [columns, E]; an empty interval repeats the one before."""
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
    """Names of the layers with routers, in the model's order."""
    return list(dict.fromkeys(layer for record in records for layer in record.get("experts", {})))


def expert_rows(records: Sequence[dict[str, Any]], layer: str, key: str) -> tuple[Array, Array]:
    """(steps [S], values [S, E]) of a layer's ``load`` or ``bias``, or [S, 1] of a single number."""
    logged = [record for record in records if layer in record.get("experts", {})]
    values = np.array([record["experts"][layer][key] for record in logged], dtype=np.float64)
    return np.array([record["step"] for record in logged], dtype=np.float64), values.reshape(len(logged), -1)


def totals(records: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """(target tokens, seconds) of the run; a record stands for all steps since the previous record."""
    tokens, seconds, previous = 0.0, 0.0, 0
    for record in records:
        gap = record["step"] - previous
        tokens, seconds = tokens + gap * record["targets"], seconds + gap * record["seconds"]
        previous = record["step"]
    return tokens, seconds
