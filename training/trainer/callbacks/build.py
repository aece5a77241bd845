"""Builds the callbacks of a training run, in the order in which they are called."""

from training.trainer.callback import Callback
from training.trainer.callbacks.checkpoint import CheckpointCallback
from training.trainer.callbacks.early_stopping import EarlyStoppingCallback
from training.trainer.callbacks.hang import HangCallback
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.callbacks.samples import SamplesCallback
from training.trainer.callbacks.stability import StabilityCallback
from training.trainer.callbacks.validation import ValidationCallback
from training.trainer.context import TrainingContext


def build_callbacks(context: TrainingContext) -> list[Callback]:
    """Return all callbacks of a run. Their order matters; the comments explain why."""
    metrics = MetricsCallback(context)
    validation = ValidationCallback(context, metrics)
    early_stopping = EarlyStoppingCallback(context, validation, metrics)
    stability = StabilityCallback(context, metrics)
    checkpoint = CheckpointCallback(context, validation, early_stopping, stability)
    return [
        # Validation before stability: if stability ends the run at this step, the validation loss is already logged.
        # Validation before the checkpoint: the manifest records the validation loss at its step, which determines the
        # best checkpoints to keep.
        validation,
        # Early stopping after validation, whose loss it reads, and before the checkpoint, which records whether the run
        # ends at this step. A checkpoint is also saved at a step whose loss is the lowest so far.
        early_stopping,
        # Stability before the checkpoint: if stability ends the run, the step that ended it must not be saved. Also, a
        # checkpoint's count of skipped steps includes the checkpoint's own step.
        stability,
        # Checkpoint before metrics: the callback only copies the state, and a thread writes it. The rest of the step
        # therefore overlaps with the write.
        checkpoint,
        # Metrics after validation, early stopping and stability, so that their records for a step precede the step's
        # train record.
        metrics,
        # Samples after the checkpoint: prompts are completed at steps that it saves, while a thread writes the files.
        # After metrics, because completing them takes longer than a step.
        SamplesCallback(context, checkpoint, metrics),
        # The hang timer last: it restarts once all other work of a step is done, so its limit covers that work too.
        HangCallback(context),
    ]
