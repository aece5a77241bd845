"""Validation at its steps; every rank takes part."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from artefacts.progress import log
from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.distributed.ranks import Ranks, sum_over_ranks
from training.trainer.callbacks.metrics import MetricsHook
from training.trainer.trainer import Hook, Objective, StepResult


class ValidationHook(Hook):
    """Mean loss over the same batches, spread over the ranks, every so many steps and at the end."""

    def __init__(
        self,
        engine: Any,
        objective: Objective,
        batches: Sequence[Batch],
        every: int,
        metrics: MetricsHook,
        ranks: Ranks,
    ) -> None:
        self._engine, self._objective, self._every = engine, objective, every
        self._metrics, self._ranks = metrics, ranks
        # Under expert parallelism every forward is a collective, so each rank does the same number of batches: the
        # last round is filled up with batches that have no targets.
        filled = list(batches)
        while len(filled) % ranks.size:
            filled.append(replace(filled[0], labels=torch.full_like(filled[0].labels, IGNORED)))
        self._batches = filled[ranks.rank :: ranks.size]
        self._last, self._loss = -1, 0.0

    def after_step(self, result: StepResult) -> None:
        if self._every and result.step % self._every == 0:
            self._validate(result.step)

    def at_end(self, step: int) -> None:
        self._validate(step)

    def loss_at(self, step: int) -> float | None:
        """The mean loss at a step, if the newest validation was there."""
        return self._loss if step == self._last else None

    @torch.no_grad()
    def _validate(self, step: int) -> None:
        if not self._batches or step == self._last:
            return
        self._last = step
        self._engine.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in self._batches:
            loss, targets = self._objective.cross_entropy(self._engine, batch.to(self._ranks.device))
            sums += torch.stack([loss.cpu().double(), targets.cpu().double()])
        self._engine.train()
        sum_over_ranks(sums)
        self._loss = float(sums[0] / sums[1])
        if self._ranks.first:
            self._metrics.write({"kind": "validation", "step": step, "loss": self._loss})
            log(f"step {step}: validation loss {self._loss:.4f}")
