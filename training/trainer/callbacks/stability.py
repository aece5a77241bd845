"""Whether a run is well: steps without a usable loss or gradient, and spikes of the loss."""

import math
from collections import deque
from collections.abc import Collection

from artefacts.errors import RunError
from artefacts.progress import warn
from training.trainer.callbacks.metrics import MetricsHook
from training.trainer.trainer import Hook, StepResult

#: Losses that must be known before one is judged.
_FEWEST = 16


class SkippedSteps:
    """Counts the steps that changed nothing; every rank counts the same."""

    def __init__(self, most_in_a_row: int) -> None:
        """``most_in_a_row``: one more ends the run."""
        self._most = most_in_a_row
        self.total = 0
        self.in_a_row = 0

    def state(self) -> dict[str, int]:
        """What a resume is to go on from."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, int]) -> None:
        """Set what ``state`` gave."""
        self.total, self.in_a_row = state["total"], state["in_a_row"]

    def count(self, step: int, skipped: bool) -> None:
        """Note how step ``step`` went.

        Raises:
            RunError: too many in a row were skipped.
        """
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if self.in_a_row > self._most:
            raise RunError(
                f"step {step}: {self.in_a_row} steps in a row had a loss or a gradient that is no finite number "
                f"(train.watch.skipped_in_a_row={self._most}); nothing more is saved, the newest checkpoint is from "
                "before: look at the data from there on, or begin anew with a lower train.learning_rate"
            )


class SpikeDetector:
    """Compares each loss with those of the steps before it."""

    def __init__(self, window: int, deviations: float) -> None:
        """``window``: so many losses back; ``deviations``: standard deviations above their mean that are a spike."""
        self._losses: deque[float] = deque(maxlen=window)
        self._deviations = deviations

    def judge(self, loss: float) -> float | None:
        """Standard deviations by which a loss is above the recent mean, if that makes it a spike; else None.

        A spike enters the window as what would just not have been one: a level that stays is soon no spike any more.
        """
        if not self._deviations or not math.isfinite(loss):
            return None
        above = None
        if len(self._losses) >= _FEWEST:
            mean, deviation = _mean_and_deviation(self._losses)
            limit = mean + self._deviations * deviation
            if loss > limit and deviation > 0:
                above, loss = (loss - mean) / deviation, limit
        self._losses.append(loss)
        return above


def _mean_and_deviation(values: Collection[float]) -> tuple[float, float]:
    """What ``statistics`` gives, which takes seven times as long, at every step."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum([(value - mean) ** 2 for value in values]) / (len(values) - 1))


class WatchHook(Hook):
    """Ends a run of skipped steps; tells skipped steps and spikes, in ``metrics.jsonl`` as ``event`` records."""

    def __init__(self, skipped: SkippedSteps, spikes: SpikeDetector, metrics: MetricsHook, first: bool) -> None:
        self._skipped, self._spikes, self._metrics, self._first = skipped, spikes, metrics, first

    def after_step(self, result: StepResult) -> None:
        if self._first:
            self._tell(result)
        # A lowered loss scale is how fp16 finds its scale, not a fault.
        self._skipped.count(result.step, result.skipped == "non_finite")

    def _tell(self, result: StepResult) -> None:
        event = {"kind": "event", "step": result.step}
        if result.skipped:
            self._metrics.write({**event, "event": "skipped", "reason": result.skipped, "loss": result.loss})
            if result.skipped == "non_finite":
                warn(f"step {result.step} skipped: its loss or gradient is no finite number")
            return
        above = self._spikes.judge(result.loss)
        if above is not None:
            self._metrics.write({**event, "event": "spike", "loss": result.loss, "deviations": round(above, 2)})
            warn(f"step {result.step}: loss {result.loss:.4g} is {above:.1f} standard deviations above the recent mean")
