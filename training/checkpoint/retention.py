"""Decides which checkpoints to keep: the newest, one every N steps, and the best by validation loss."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """The rules for keeping checkpoints. A checkpoint is kept if any of the three rules applies.

    Attributes:
        newest: keep this many of the newest checkpoints.
        every: keep all checkpoints at multiples of this many steps; 0 disables the rule.
        best: keep this many checkpoints with the lowest validation loss.
    """

    newest: int
    every: int = 0
    best: int = 0


def superseded(losses: Mapping[int, float | None], retention: Retention) -> list[int]:
    """Return the steps whose checkpoints can be deleted, in ascending order.

    Args:
        losses: the step and validation loss of every checkpoint; None if the loss was not measured. A non-finite loss
            is never among the best.
        retention: which checkpoints to keep.
    """
    steps = sorted(losses)
    kept = set(steps[-retention.newest :])
    if retention.every:
        kept |= {step for step in steps if step % retention.every == 0}
    measured = [(loss, step) for step, loss in losses.items() if loss is not None and math.isfinite(loss)]
    kept |= {step for _, step in sorted(measured)[: retention.best]}
    return [step for step in steps if step not in kept]
