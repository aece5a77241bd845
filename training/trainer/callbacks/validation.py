"""Measures the validation loss during and after training, with the batches split across ranks.

Fine-tuning also measures the loss on pretraining's validation text, before the first step too: its increase is what the
model has forgotten.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from artefacts.progress import log
from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.distributed.ranks import sum_over_ranks
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.context import TrainingContext

#: Measures a batch: sums and the numbers of items summed over, by name.
_Measure = Callable[[Any, Batch], Mapping[str, tuple[torch.Tensor, torch.Tensor | int]]]


class ValidationCallback(Callback):
    """Measures the mean loss over ``context.validation`` every ``train.eval_every`` steps and after the last step.

    With ``context.earlier_validation``, it does so before the first step as well, and over those batches too.
    """

    def __init__(self, context: TrainingContext, metrics: MetricsCallback) -> None:
        self._context, self._metrics = context, metrics
        self._batches = _share(context, context.validation)
        self._earlier_batches = _share(context, context.earlier_validation)
        self._last_step, self._loss = -1, 0.0

    def on_train_begin(self) -> None:
        if self._earlier_batches and not self._context.start_step:
            self._validate(0)

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

    def _validate(self, step: int) -> None:
        if not self._batches or step == self._last_step:
            return
        objective = self._context.objective
        means = self._means(objective.validate, self._batches)
        self._last_step, self._loss = step, means.pop(next(iter(means)))
        record = {"kind": "validation", "step": step, "loss": self._loss, **means}
        message = f"step {step}: validation loss {self._loss:.4f}"
        if self._earlier_batches:
            earlier = self._context.earlier_objective
            assert earlier is not None
            record |= self._means(
                lambda engine, batch: {"pretraining_loss": earlier.cross_entropy(engine, batch)},
                self._earlier_batches,
            )
            message += f", on pretraining's text {record['pretraining_loss']:.4f}"
        if self._context.ranks.first:
            self._metrics.write(record)
            log(message)

    @torch.no_grad()
    def _means(self, measure: _Measure, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the mean of each of the measured sums over all ranks' batches. Collective."""
        engine, ranks = self._context.engine, self._context.ranks
        engine.eval()
        measured = [measure(engine, batch.to(ranks.device)) for batch in batches]
        engine.train()
        names = list(measured[0])
        numbers = [[[float(total), float(count)] for total, count in sums.values()] for sums in measured]
        sums_N2 = sum_over_ranks(torch.tensor(numbers, dtype=torch.float64).sum(0))
        return dict(zip(names, (sums_N2[:, 0] / sums_N2[:, 1]).tolist(), strict=True))


def _share(context: TrainingContext, all_batches: Sequence[Batch]) -> list[Batch]:
    """Return this rank's batches.

    Under expert parallelism every forward pass is a collective, so every rank needs the same number of batches. Ranks
    that would be one batch short get a batch without targets.
    """
    ranks, batches = context.ranks, list(all_batches)
    while len(batches) % ranks.size:
        batches.append(replace(batches[0], labels=torch.full_like(batches[0].labels, IGNORED)))
    return batches[ranks.rank :: ranks.size]
