"""Statistics about what each head attends to."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluate.attention.collect import AttentionMap


@dataclass(frozen=True)
class HeadNumbers:
    """A head's statistics, averaged over the queries of a text.

    Attributes:
        layer: name of the layer's map.
        head: head number, from 0.
        to_itself: weight of the query's own position. None in cross-attention.
        before: weight of the previous position, for all queries but the first. None if the head does not look back.
        after: weight of the next position, for all queries but the last. None if the head does not look ahead.
        entropy: entropy of a query's weights, in nats.
        entropy_share: entropy divided by the entropy of uniform weights over all visible positions, averaged over the
            queries that see more than one position. None if there are no such queries.
    """

    layer: str
    head: int
    to_itself: float | None
    before: float | None
    after: float | None
    entropy: float
    entropy_share: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def head_numbers(attention: AttentionMap) -> list[HeadNumbers]:
    """Compute the statistics of every head in a map."""
    # A position is visible if any head attends to it, since a single head's weight may be rounded to zero. `_numbers`
    # then excludes the side that a head does not look at.
    visible_TL = np.asarray((attention.weights_NTL > 0).any(0))
    return [_numbers(attention, head, weights, visible_TL) for head, weights in enumerate(attention.weights_NTL)]


def _numbers(
    attention: AttentionMap, head: int, weights: NDArray[np.float32], visible_TL: NDArray[np.bool_]
) -> HeadNumbers:
    weights_TL = weights.astype(np.float64)
    back = not attention.cross and bool(np.tril(weights_TL, -1).any())
    ahead = not attention.cross and bool(np.triu(weights_TL, 1).any())
    if back and not ahead:
        visible_TL = np.tril(visible_TL)
    elif ahead and not back:
        visible_TL = np.triu(visible_TL)
    visible_T = visible_TL.sum(-1)
    entropy_T = -(weights_TL * np.log(np.where(weights_TL > 0, weights_TL, 1.0))).sum(-1)
    several = visible_T > 1
    return HeadNumbers(
        layer=attention.name,
        head=head,
        to_itself=None if attention.cross else _mean(weights_TL.diagonal()),
        before=_mean(weights_TL.diagonal(-1)) if back else None,
        after=_mean(weights_TL.diagonal(1)) if ahead else None,
        entropy=float(entropy_T.mean()),
        entropy_share=_mean(entropy_T[several] / np.log(visible_T[several])),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def lines(numbers: list[HeadNumbers]) -> list[str]:
    """Format the statistics as the lines of a table, with a dash for None."""
    head = f"{'layer':<12}{'head':>5}{'itself':>9}{'before':>9}{'after':>9}{'entropy':>9}{'of most':>9}"
    rows = [head]
    for head_row in numbers:
        values = (head_row.to_itself, head_row.before, head_row.after, head_row.entropy, head_row.entropy_share)
        rows.append(f"{head_row.layer:<12}{head_row.head:>5}" + "".join(f"{_shown(value):>9}" for value in values))
    return rows


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
