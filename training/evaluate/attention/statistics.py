"""What each head does, in a few numbers."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluate.attention.collect import AttentionMap


@dataclass(frozen=True)
class HeadNumbers:
    """Means over the queries of a text. What a head has not is None.

    Attributes:
        layer: name of the layer's map.
        head: from 0.
        to_itself: weight of the query's own position; None: of another sequence there is none.
        before: weight of the position before, over the queries that have one; None: the head sees nothing before.
        after: weight of the position after, likewise.
        entropy: of a query's weights, in nats.
        entropy_share: entropy over that of even weights on all the positions that the query sees, over the queries that
            see more than one.
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


def head_numbers(found: AttentionMap) -> list[HeadNumbers]:
    """The numbers of every head of a map."""
    # What any head looks at, all of them see that look to its side: a single weight may have been rounded to zero.
    seen_TL = np.asarray((found.weights_NTL > 0).any(0))
    return [_numbers(found, head, weights, seen_TL) for head, weights in enumerate(found.weights_NTL)]


def _numbers(found: AttentionMap, head: int, weights: NDArray[np.float32], seen_TL: NDArray[np.bool_]) -> HeadNumbers:
    weights_TL = weights.astype(np.float64)
    back = not found.cross and bool(np.tril(weights_TL, -1).any())
    ahead = not found.cross and bool(np.triu(weights_TL, 1).any())
    if back and not ahead:
        seen_TL = np.tril(seen_TL)
    elif ahead and not back:
        seen_TL = np.triu(seen_TL)
    seen_T = seen_TL.sum(-1)
    entropy_T = -(weights_TL * np.log(np.where(weights_TL > 0, weights_TL, 1.0))).sum(-1)
    several = seen_T > 1
    return HeadNumbers(
        layer=found.name,
        head=head,
        to_itself=None if found.cross else _mean(weights_TL.diagonal()),
        before=_mean(weights_TL.diagonal(-1)) if back else None,
        after=_mean(weights_TL.diagonal(1)) if ahead else None,
        entropy=float(entropy_T.mean()),
        entropy_share=_mean(entropy_T[several] / np.log(seen_T[several])),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def lines(numbers: list[HeadNumbers]) -> list[str]:
    """A table of them; a dash where there is none."""
    head = f"{'layer':<12}{'head':>5}{'itself':>9}{'before':>9}{'after':>9}{'entropy':>9}{'of most':>9}"
    rows = [head]
    for each in numbers:
        values = (each.to_itself, each.before, each.after, each.entropy, each.entropy_share)
        rows.append(f"{each.layer:<12}{each.head:>5}" + "".join(f"{_shown(value):>9}" for value in values))
    return rows


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
