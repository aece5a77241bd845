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
        # Validation before stability: the loss of a step that ends the run is still measured and logged.
        validation,
        # Stability before the checkpoint: what ends the run as unstable must not be saved, and the checkpoint holds the
        # count of skipped steps including this one. Validation before the checkpoint: its manifest records the
        # validation loss at its step, by which the best checkpoints are kept.
        stability,
        # The checkpoint before metrics: the host copy of the state is taken first, and is written while metrics are.
        checkpoint,
        # Metrics after all that log to its files, which it closes at the end.
        metrics,
        # The hang timer last: it starts again when everything else that belongs to a step is done.
        HangCallback(context),
    ]
