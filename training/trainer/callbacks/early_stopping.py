"""Tracks the lowest validation loss, and ends training early when the loss stops falling."""

import math
from collections.abc import Mapping
from typing import Any

from artefacts.progress import log
from configs.schema.tracking import EarlyStoppingSection
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.callbacks.validation import ValidationCallback
from training.trainer.context import TrainingContext


class LowestLoss:
    """The lowest validation loss so far, and the number of validations since the last improvement.

    An improvement must be larger than ``min_delta``, but the lowest loss is the lowest by any margin. A non-finite loss
    is neither.
    """

    def __init__(self, section: EarlyStoppingSection | None) -> None:
        """Start without a loss. If ``section`` is None, training never ends early."""
        self._section = section
        self.step: int | None = None
        self.loss = math.inf
        self._reference = math.inf
        self.waited = 0

    def add(self, step: int, loss: float) -> None:
        """Add the validation loss after step ``step``."""
        if loss < self.loss:
            self.step, self.loss = step, loss
        if loss < self._reference - (self._section.min_delta if self._section else 0.0):
            self._reference, self.waited = loss, 0
        else:
            self.waited += 1

    @property
    def patience_is_exhausted(self) -> bool:
        """Whether training ends early."""
        return self._section is not None and self.waited >= self._section.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for a checkpoint. It is empty before the first finite loss."""
        if self.step is None:
            return {"waited": self.waited}
        return {"step": self.step, "loss": self.loss, "reference": self._reference, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from ``state_dict``."""
        self.step, self.loss = state.get("step"), state.get("loss", math.inf)
        self._reference, self.waited = state.get("reference", math.inf), state["waited"]


class EarlyStoppingCallback(Callback):
    """Ends training after ``early_stopping.patience`` validations in a row without improvement.

    The validation loss is summed over all ranks, so every rank makes the same decision. The state is saved in
    checkpoints: a resumed run ends at the same step as an uninterrupted one.
    """

    def __init__(self, context: TrainingContext, validation: ValidationCallback, metrics: MetricsCallback) -> None:
        self._validation, self._metrics, self._first = validation, metrics, context.ranks.first
        self.lowest = LowestLoss(context.train.early_stopping)
        if "early_stopping" in context.restored:
            self.lowest.load_state_dict(context.restored["early_stopping"])

    def on_step_end(self, result: StepResult) -> None:
        loss = self._validation.loss_at(result.step)
        if loss is None:
            return
        self.lowest.add(result.step, loss)
        if self._first and self.ends_training():
            waited, step, lowest = self.lowest.waited, self.lowest.step, self.lowest.loss
            event = {"kind": "event", "step": result.step, "event": "early_stop", "lowest_step": step}
            self._metrics.write(event)
            log(
                f"step {result.step}: training ends early, {waited} validations after the last improvement (the lowest "
                f"validation loss is {lowest:.4f}, at step {step})"
            )

    def ends_training(self) -> bool:
        return self.lowest.patience_is_exhausted

    def is_lowest(self, step: int) -> bool:
        """Return whether the validation loss at a step is the lowest so far."""
        return step == self.lowest.step
