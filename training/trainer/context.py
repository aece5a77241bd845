"""Everything one rank needs to train: built once by ``training.job``, and shared by the trainer and its callbacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from artefacts.signals import StopRequest
from artefacts.training_folder import TrainingRun
from configs.schema.train import TrainSection
from training.checkpoint.save import Saver
from training.data.batch import Batch, Data
from training.distributed.ranks import Ranks
from training.trainer.load_balancer import Balancer


class Objective(Protocol):
    """A training objective: the weighted sum of several mean losses, one of which is ``cross_entropy``."""

    weights: Mapping[str, float]

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return, for each loss, the number of items in a batch over which the loss is averaged."""
        ...

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return each loss, summed over a batch."""
        ...

    def cross_entropy(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy summed over a batch's targets, and the number of targets. For evaluation."""
        ...


@dataclass(frozen=True)
class TrainingContext:
    """One training run on one rank.

    Attributes:
        run: the run's output folder, with its stage and identity.
        train: the recipe's train section for this run.
        ranks: this process's position among all ranks.
        engine: the DeepSpeed engine around the model.
        objective: the losses to minimize.
        data: the micro-batches of every step.
        validation: the batches for the validation loss, the same on every rank.
        balancer: measures the routers' loads and updates their biases.
        saver: writes checkpoints to the run's folder.
        stop: set when a signal asks the run to stop.
        global_batch: samples per optimizer step.
        flops_per_token: training FLOPs per token, forward and backward.
        start_step: optimizer steps already done; 0 unless the run resumes from a checkpoint.
        earlier_validation: batches of pretraining's validation text, to measure what fine-tuning forgets; the same on
            every rank, and empty in pretraining.
        restored: the ``state`` saved in that checkpoint; empty if the run does not resume.
    """

    run: TrainingRun
    train: TrainSection
    ranks: Ranks
    engine: Any
    objective: Objective
    data: Data
    validation: Sequence[Batch]
    balancer: Balancer
    saver: Saver
    stop: StopRequest
    global_batch: int
    flops_per_token: float
    start_step: int = 0
    earlier_validation: Sequence[Batch] = ()
    restored: Mapping[str, Any] = field(default_factory=dict)
