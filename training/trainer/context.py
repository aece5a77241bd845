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
    """A training objective: the weighted sum of several mean losses.

    Attributes:
        weights: each loss's weight. The first loss is the main one. Losses with weight 0 are only measured.
    """

    weights: Mapping[str, float]

    def counts(self, batch: Batch) -> dict[str, int]:
        """Return, for each loss, the number of items in a batch over which the loss is averaged."""
        ...

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return each loss, summed over a batch."""
        ...

    def validate(self, model: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, int]]:
        """Return the main loss and whatever else is measured, each as a sum over a batch and the number of items."""
        ...

    def cross_entropy(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy summed over the targets of a batch of text, and the number of targets."""
        ...


class Sampler(Protocol):
    """Completes fixed prompts with the model in training."""

    @property
    def prompts(self) -> Sequence[str]: ...

    def complete(self, engine: Any, ranks: Ranks) -> list[str]:
        """Return each prompt's completion. Collective. The engine must be in evaluation mode."""
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
        earlier_objective: pretraining's objective, which measures those batches with the same document masks as in
            pretraining. Unused if there are none.
        restored: the ``state`` saved in that checkpoint; empty if the run does not resume.
        keep_best: whether later steps use the checkpoint with the lowest validation loss, rather than the last one.
        sampler: completes ``train.samples``; None if the recipe has none.
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
    earlier_objective: Objective | None = None
    restored: Mapping[str, Any] = field(default_factory=dict)
    keep_best: bool = False
    sampler: Sampler | None = None
