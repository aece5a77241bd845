"""What one rank needs in order to train: built once by ``training.job``, read by the trainer and its callbacks."""

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
    """The losses to minimize: the sum over them of weight times mean. One of them is ``cross_entropy``."""

    weights: Mapping[str, float]

    def counts(self, batch: Batch) -> dict[str, int]:
        """How many items the mean of each loss runs over in a batch."""
        ...

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum of each loss over a batch."""
        ...

    def cross_entropy(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy summed over a batch's targets, and the number of targets; for evaluation."""
        ...


@dataclass(frozen=True)
class TrainingContext:
    """One training run on one rank.

    Attributes:
        run: the folder that the run writes to, with its stage and identity.
        train: the train section that the run follows.
        ranks: this process among all others.
        engine: the DeepSpeed engine around the model.
        objective: the losses to minimize.
        data: the micro-batches of every step.
        validation: the batches of the validation loss, the same on every rank.
        balancer: measures the load of the routers and moves their biases.
        saver: writes checkpoints into the folder of the run.
        stop: set when a signal asks the run to stop.
        global_batch: samples per optimizer step.
        flops_per_token: training FLOPs per token, forward and backward.
        start_step: optimizer steps already done; 0 unless the run resumes from a checkpoint.
        restored: the ``state`` that this checkpoint kept; empty if the run starts from nothing.
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
    restored: Mapping[str, Any] = field(default_factory=dict)
