"""Ends a run that skips too many steps in a row, and reports loss spikes."""

import math
from collections import deque
from collections.abc import Collection

from artefacts.errors import RunError
from artefacts.progress import warn
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.context import TrainingContext

#: Number of losses needed before a loss can count as a spike.
_MIN_LOSSES = 16


class SkippedSteps:
    """Counts the steps skipped because of a non-finite loss or gradient. The counts are the same on every rank."""

    def __init__(self, max_in_a_row: int) -> None:
        """Start counting at zero. The run ends when more than ``max_in_a_row`` steps in a row are skipped."""
        self._max = max_in_a_row
        self.total = 0
        self.in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        """Return the counts, for a checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the counts from ``state_dict``."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def count(self, step: int, skipped: bool) -> None:
        """Update the counts after step ``step``.

        Raises:
            RunError: too many steps in a row were skipped.
        """
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row > self._max:
            raise RunError(
                f"step {step}: {self.in_a_row} steps in a row had a non-finite loss or gradient "
                f"(train.watch.skipped_in_a_row={self._max}). No checkpoint is saved at this step. Check the data that "
                "followed the newest checkpoint, or restart with a lower train.learning_rate"
            )


class SpikeDetector:
    """Detects loss spikes by comparing each loss with the losses of the preceding steps."""

    def __init__(self, window: int, deviations: float) -> None:
        """Initialize the detector.

        Args:
            window: number of preceding losses with which a loss is compared.
            deviations: a loss is a spike if it is more than this many standard deviations above their mean; 0 disables
                the detector.
        """
        self._losses: deque[float] = deque(maxlen=window)
        self._deviations = deviations

    def deviation(self, loss: float) -> float | None:
        """Return how many standard deviations a loss is above the recent mean, or None if it is not a spike.

        Spikes are clipped to the spike threshold before they enter the window. As a result, if the loss stays high,
        its new level soon counts as normal.
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
    """Return the mean and the sample standard deviation.

    This runs at every step, and the ``statistics`` module is seven times slower.
    """
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1))


class StabilityCallback(Callback):
    """Reports skipped steps and loss spikes, logs them as ``event`` records, and ends the run after too many skips."""

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
        # Skipping a step to lower the loss scale is part of normal fp16 training, so it does not count.
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
