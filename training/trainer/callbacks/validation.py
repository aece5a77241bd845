"""Measures the validation loss during and after training, with the batches split across ranks."""

from dataclasses import replace

import torch

from artefacts.progress import log
from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.distributed.ranks import sum_over_ranks
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.context import TrainingContext


class ValidationCallback(Callback):
    """Measures the mean loss over ``context.validation`` every ``train.eval_every`` steps and after the last step."""

    def __init__(self, context: TrainingContext, metrics: MetricsCallback) -> None:
        self._context, self._metrics = context, metrics
        self._batches = _share(context)
        self._last_step, self._loss = -1, 0.0

    def on_step_end(self, result: StepResult) -> None:
        train = self._context.train
        # The last step is validated here, so that its checkpoint records the loss.
        if result.step == train.steps or (train.eval_every and result.step % train.eval_every == 0):
            self._validate(result.step)

    def on_train_end(self, step: int) -> None:
        """Validate again if the run resumed after its last step, because its record may have been lost."""
        self._validate(step)

    def loss_at(self, step: int) -> float | None:
        """Return the validation loss at a step, or None if that step is not the most recently validated step."""
        return self._loss if step == self._last_step else None

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        if not self._batches or step == self._last_step:
            return
        self._last_step = step
        engine, ranks = self._context.engine, self._context.ranks
        engine.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in self._batches:
            loss, targets = self._context.objective.cross_entropy(engine, batch.to(ranks.device))
            sums += torch.stack([loss.cpu().double(), targets.cpu().double()])
        engine.train()
        sum_over_ranks(sums)
        self._loss = float(sums[0] / sums[1])
        if ranks.first:
            self._metrics.write({"kind": "validation", "step": step, "loss": self._loss})
            log(f"step {step}: validation loss {self._loss:.4f}")


def _share(context: TrainingContext) -> list[Batch]:
    """Return this rank's batches.

    Under expert parallelism every forward pass is a collective, so every rank needs the same number of batches. Ranks
    that would be one batch short get a batch without targets.
    """
    ranks, batches = context.ranks, list(context.validation)
    while len(batches) % ranks.size:
        batches.append(replace(batches[0], labels=torch.full_like(batches[0].labels, IGNORED)))
    return batches[ranks.rank :: ranks.size]
