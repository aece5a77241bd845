"""Stops a run that skips too many steps in a row, and reports spikes of the loss."""

import math
from collections import deque
from collections.abc import Collection

from artefacts.errors import RunError
from artefacts.progress import warn
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.context import TrainingContext

#: Losses needed before the next one can be called a spike.
_MIN_LOSSES = 16


class SkippedSteps:
    """Counts the steps that changed nothing; every rank counts the same."""

    def __init__(self, max_in_a_row: int) -> None:
        """``max_in_a_row``: one more ends the run."""
        self._max = max_in_a_row
        self.total = 0
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the counts of ``state_dict``."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def count(self, step: int, skipped: bool) -> None:
        """Count step ``step``.

        Raises:
            RunError: too many steps in a row were skipped.
        """
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row > self._max:
            raise RunError(
                f"step {step}: {self.in_a_row} steps in a row had a loss or a gradient that is not finite "
                f"(train.watch.skipped_in_a_row={self._max}). Nothing more is saved; the newest checkpoint is older. "
                "Look at the data from there on, or start again with a lower train.learning_rate"
            )


class SpikeDetector:
    """Compares each loss with the losses of the steps before it."""

    def __init__(self, window: int, deviations: float) -> None:
        """A loss is a spike if it is more than ``deviations`` standard deviations above the mean of the ``window``
        losses before it; 0 deviations disable it.
        """
        self._losses: deque[float] = deque(maxlen=window)
        self._deviations = deviations

    def deviation(self, loss: float) -> float | None:
        """How many standard deviations a loss is above the recent mean, if that makes it a spike; else None.

        A spike enters the window as the highest loss that is not one, so that a level that persists soon counts as
        normal.
        """
        if not self._deviations or not math.isfinite(loss):
            return None
        above = None
        if len(self._losses) >= _MIN_LOSSES:
            mean, deviation = _mean_and_deviation(self._losses)
            limit = mean + self._deviations * deviation
            if loss > limit and deviation > 0:
                above, loss = (loss - mean) / deviation, limit
        self._losses.append(loss)
        return above


def _mean_and_deviation(values: Collection[float]) -> tuple[float, float]:
    """The same as the ``statistics`` module, which takes seven times as long, at every step."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1))


class StabilityCallback(Callback):
    """Stops a run of skipped steps; reports skipped steps and spikes, and logs them as ``event`` records."""

    def __init__(self, context: TrainingContext, metrics: MetricsCallback) -> None:
        watch = context.train.watch
        self.skipped = SkippedSteps(watch.skipped_in_a_row)
        if "skipped" in context.restored:
            self.skipped.load_state_dict(context.restored["skipped"])
        self._spikes = SpikeDetector(watch.spike_window, watch.spike_deviations)
        self._metrics, self._first = metrics, context.ranks.first

    def on_step_end(self, result: StepResult) -> None:
        if self._first:
            self._report(result)
        # A lowered loss scale is how fp16 finds its scale, not a fault.
        self.skipped.count(result.step, result.skipped == "non_finite")

    def _report(self, result: StepResult) -> None:
        event = {"kind": "event", "step": result.step}
        if result.skipped:
            self._metrics.write({**event, "event": "skipped", "reason": result.skipped, "loss": result.loss})
            if result.skipped == "non_finite":
                warn(f"step {result.step} skipped: its loss or gradient is not finite")
            return
        above = self._spikes.deviation(result.loss)
        if above is not None:
            self._metrics.write({**event, "event": "spike", "loss": result.loss, "deviations": round(above, 2)})
            warn(f"step {result.step}: loss {result.loss:.4g} is {above:.1f} standard deviations above the recent mean")
