"""Saves checkpoints during and after training."""

from collections.abc import Sequence

from artefacts.training_folder import STOPPED_EARLY
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.early_stopping import EarlyStoppingCallback
from training.trainer.callbacks.stability import StabilityCallback
from training.trainer.callbacks.validation import ValidationCallback
from training.trainer.context import TrainingContext


class CheckpointCallback(Callback):
    """Saves a checkpoint every ``train.save_every`` steps, when a signal stops the run, and after the last step.

    If later steps use the best checkpoint, one is also saved whenever the validation loss is the lowest so far.

    Training continues while a checkpoint is being written. Only the final save, on a signal or after the last step,
    waits until the checkpoint is on disk.
    """

    def __init__(
        self,
        context: TrainingContext,
        validation: ValidationCallback,
        early_stopping: EarlyStoppingCallback,
        stability: StabilityCallback,
    ) -> None:
        """Initialize the callback.

        Args:
            context: this run.
            validation: provides the validation loss that a checkpoint records.
            early_stopping: provides the lowest validation loss, and whether the run ends early.
            stability: provides the counts of skipped steps that a checkpoint records.
        """
        self._context, self._validation, self._stability = context, validation, stability
        self._early_stopping = early_stopping
        self.last_saved = context.start_step

    def on_step_end(self, result: StepResult) -> None:
        every = self._context.train.save_every
        is_best = self._context.keep_best and self._early_stopping.is_lowest(result.step)
        if is_best or (every and result.step % every == 0):
            self._begin(result.step)

    def reduce_inputs(self) -> Sequence[float]:
        return self._context.saver.reduce_inputs()

    def on_reduced(self, sums: Sequence[float]) -> None:
        self._context.saver.on_reduced(sums)

    def on_interrupt(self, step: int) -> None:
        self._finish(step)

    def on_train_end(self, step: int) -> None:
        self._finish(step)

    def on_failure(self) -> None:
        """Finish any pending checkpoint before the run's lock is released: it is valid even if the run failed."""
        self._context.saver.drain()

    def _begin(self, step: int) -> None:
        if step == self.last_saved:
            return
        counts = {"samples": step * self._context.global_batch, "validation_loss": self._validation.loss_at(step)}
        if self._early_stopping.ends_training():
            counts[STOPPED_EARLY] = True
        state = {
            "balance": self._context.balancer.state_dict(),
            "skipped": self._stability.skipped.state_dict(),
            "early_stopping": self._early_stopping.lowest.state_dict(),
        }
        self._context.saver.begin(step, counts, state)
        self.last_saved = step

    def _finish(self, step: int) -> None:
        """Save this step's checkpoint if not yet started, and wait for it. Raises ``RunError`` if saving fails."""
        self._begin(step)
        self._context.saver.finish()
