"""Builds the callbacks of a training run, in the order in which they are called."""

from training.trainer.callback import Callback
from training.trainer.callbacks.checkpoint import CheckpointCallback
from training.trainer.callbacks.hang import HangCallback
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.callbacks.stability import StabilityCallback
from training.trainer.callbacks.validation import ValidationCallback
from training.trainer.context import TrainingContext


def build_callbacks(context: TrainingContext) -> list[Callback]:
    """Return all callbacks of a run. Their order matters; the comments explain why."""
    metrics = MetricsCallback(context)
    validation = ValidationCallback(context, metrics)
    stability = StabilityCallback(context, metrics)
    checkpoint = CheckpointCallback(context, validation, stability)
    return [
        # Validation before stability: if stability ends the run at this step, the validation loss is already logged.
        # Validation before the checkpoint: the manifest records the validation loss at its step, which determines the
        # best checkpoints to keep.
        validation,
        # Stability before the checkpoint: if stability ends the run, the step that ended it must not be saved. Also, a
        # checkpoint's count of skipped steps includes the checkpoint's own step.
        stability,
        # Checkpoint before metrics: the callback only copies the state, and a thread writes it. The rest of the step
        # therefore overlaps with the write.
        checkpoint,
        # Metrics after validation and stability, so that their records for a step precede the step's train record,
        # except the final validation: its record is written in on_train_end.
        metrics,
        # The hang timer last: it restarts once all other work of a step is done, so its limit covers that work too.
        HangCallback(context),
    ]
