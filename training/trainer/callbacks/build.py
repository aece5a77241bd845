"""The callbacks of a training run, in the order in which they are called."""

from training.trainer.callback import Callback
from training.trainer.callbacks.checkpoint import CheckpointCallback
from training.trainer.callbacks.hang import HangCallback
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.callbacks.stability import StabilityCallback
from training.trainer.callbacks.validation import ValidationCallback
from training.trainer.context import TrainingContext


def build_callbacks(context: TrainingContext) -> list[Callback]:
    """All callbacks of a run; the order matters, see the comments."""
    metrics = MetricsCallback(context)
    validation = ValidationCallback(context, metrics)
    stability = StabilityCallback(context, metrics)
    checkpoint = CheckpointCallback(context, validation, stability)
    return [
        # Validation before stability: if stability ends the run at this step, its validation loss has been logged.
        # Validation before the checkpoint: the manifest records the validation loss at its step, which decides
        # which checkpoints are the best ones to keep.
        validation,
        # Stability before the checkpoint: a run that stability ends must not save the step that ended it, and a
        # checkpoint includes its own step in the count of skipped steps.
        stability,
        # The checkpoint before metrics: threads write the checkpoint from the copy that it takes, so whatever follows
        # in the same step overlaps with writing.
        checkpoint,
        # Metrics after validation and stability, which write records at the same events: the file has them first.
        metrics,
        # The hang timer last: it restarts when all other work of a step is done, so that it covers that work too.
        HangCallback(context),
    ]
