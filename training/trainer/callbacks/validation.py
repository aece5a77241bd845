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
        every = self._context.train.eval_every
        if every and result.step % every == 0:
            self._validate(result.step)

    def on_train_end(self, step: int) -> None:
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
        sums: torch.Tensor | float = 0.0
        for batch in self._batches:
            measured = self._context.objective.validate(engine, batch.to(ranks.device))
            numbers = [[float(total), count] for total, count in measured.values()]
            sums = sums + torch.tensor(numbers, dtype=torch.float64)
        engine.train()
        assert isinstance(sums, torch.Tensor)
        sum_over_ranks(sums)
        self._loss, *others = (sums[:, 0] / sums[:, 1]).tolist()
        if ranks.first:
            also = dict(zip(list(measured)[1:], others, strict=True))
            self._metrics.write({"kind": "validation", "step": step, "loss": self._loss, **also})
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
