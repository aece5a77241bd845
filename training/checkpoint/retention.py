"""Which checkpoints stay: the newest, every so many steps, and the best by validation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """What to keep, over and above each other.

    Attributes:
        newest: so many of the newest.
        every: all at multiples of so many steps; 0: none for that.
        best: so many with the lowest validation loss.
    """

    newest: int
    every: int = 0
    best: int = 0


def superseded(losses: Mapping[int, float | None], retention: Retention) -> list[int]:
    """The steps whose checkpoints go, in order.

    Args:
        losses: of every checkpoint, by step: the validation loss at that step, or None where none was measured; one
            that is no finite number is not among the best.
        retention: what to keep.
    """
    steps = sorted(losses)
    kept = set(steps[-retention.newest :])
    if retention.every:
        kept |= {step for step in steps if step % retention.every == 0}
    measured = [(loss, step) for step, loss in losses.items() if loss is not None and math.isfinite(loss)]
    kept |= {step for _, step in sorted(measured)[: retention.best]}
    return [step for step in steps if step not in kept]
