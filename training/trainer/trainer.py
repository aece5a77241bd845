"""The training loop: one optimiser step over one global batch, everything else in hooks."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Literal, Protocol

import torch

from artefacts.errors import RunError
from artefacts.signals import StopRequest
from training.data.batch import Batch, Data
from training.distributed.ranks import Ranks, sum_over_ranks, widest
from training.engine.gradients import clip_global_norm
from training.trainer.load_balancer import Balancer, LayerLoad


class Objective(Protocol):
    """What is minimised: the sum over its losses of weight times mean; ``cross_entropy`` is one of them."""

    weights: Mapping[str, float]

    def counts(self, batch: Batch) -> dict[str, int]:
        """What each loss's mean is over, in a batch."""
        ...

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum of each loss over a batch."""
        ...

    def cross_entropy(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum over a batch's targets in evaluation, and their number."""
        ...


class Ended(Enum):
    """How a loop ended: all steps done; stopped by a signal, hooks told; left at ``stop_at`` without a word."""

    DONE = auto()
    STOPPED = auto()
    LEFT = auto()


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did.

    Attributes:
        step: steps done so far, this one included.
        loss: cross-entropy in nats a target token, over the whole global batch.
        learning_rate: of this step.
        grad_norm: before clipping.
        targets: tokens predicted, over all ranks.
        tokens: tokens computed, padding and prompts included.
        seconds: wall time.
        terms: mean of each other loss of the objective, before its weight.
        loads: of each router; none where the step was skipped.
        skipped: why nothing was changed: ``non_finite``, the loss or gradient is no finite number, or ``loss_scale``,
            it was scaled too far for fp16; None: something was.
        loss_scale: under fp16.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    targets: int
    tokens: int
    seconds: float
    terms: dict[str, float] = field(default_factory=dict)
    loads: list[LayerLoad] = field(default_factory=list)
    skipped: Literal["non_finite", "loss_scale"] | None = None
    loss_scale: float | None = None


class Hook:
    """Something done around steps; every rank calls it alike. Override what is needed."""

    def after_step(self, result: StepResult) -> None:
        """After each optimiser step."""

    def poll(self) -> Sequence[float]:
        """Numbers of this rank's, always as many, to be summed over all ranks after each step."""
        return ()

    def polled(self, sums: Sequence[float]) -> None:
        """Their sums over all ranks."""

    def at_stop(self, step: int) -> None:
        """A signal ended the loop after ``step`` steps."""

    def at_end(self, step: int) -> None:
        """All steps are done."""

    def at_failure(self) -> None:
        """A ``RunError`` ends the loop, on all ranks alike."""


class Trainer:
    """Runs optimiser steps on an engine."""

    def __init__(
        self,
        engine: Any,
        data: Data,
        objective: Objective,
        schedule: Callable[[int], float],
        balancer: Balancer,
        ranks: Ranks,
        hooks: Sequence[Hook],
        stop: StopRequest,
        own_clip: float | None = None,
    ) -> None:
        """``own_clip``: clip here to this norm, where DeepSpeed was told not to; the rest is what the names say."""
        self._engine, self._data, self._objective, self._schedule = engine, data, objective, schedule
        self._balancer, self._ranks, self._hooks = balancer, ranks, hooks
        self._stop, self._own_clip = stop, own_clip

    def run(self, start: int, steps: int, stop_at: int | None = None) -> Ended:
        """Do steps ``start`` .. ``steps``-1, unless a signal or ``stop_at`` ends it before; says which.

        Raises:
            RunError: a hook found that the run cannot go on, or that it is not saved.
        """
        try:
            return self._run(start, steps, stop_at)
        except RunError:
            for hook in self._hooks:
                hook.at_failure()
            raise

    def _run(self, start: int, steps: int, stop_at: int | None) -> Ended:
        self._engine.train()
        for step in range(start, steps):
            result = self._step(step)
            for hook in self._hooks:
                hook.after_step(result)
            if stop_at is not None and result.step >= stop_at and result.step < steps:
                return Ended.LEFT
            if self._asked_to_stop() and result.step < steps:
                for hook in self._hooks:
                    hook.at_stop(result.step)
                return Ended.STOPPED
        for hook in self._hooks:
            hook.at_end(steps)
        return Ended.DONE

    def _step(self, step: int) -> StepResult:
        began = time.monotonic()
        engine, ranks = self._engine, self._ranks
        rate = self._schedule(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)
        batches = self._data.micro_batches(step, ranks.rank, ranks.size, engine.train_micro_batch_size_per_gpu())
        names = list(self._objective.weights)
        counts, tokens = self._counts(batches)
        # DeepSpeed divides by the accumulation steps and averages over ranks: with this factor the gradient is that
        # of the means over the global batch, however it is spread over ranks and micro-batches.
        spread = len(batches) * ranks.size
        scales = {name: spread * self._objective.weights[name] / max(1.0, counts[name]) for name in names}
        totals = torch.zeros(len(names), dtype=widest(ranks.device), device=ranks.device)
        for batch in batches:
            sums = self._objective(engine, batch.to(ranks.device))
            engine.backward(_telling(torch.stack([sums[name] * scales[name] for name in names]).sum()))
            totals += torch.stack([sums[name].detach() for name in names])
            if self._own_clip is not None and engine.is_gradient_accumulation_boundary():
                norm = clip_global_norm(engine.module, self._own_clip)
            engine.step()
        if self._own_clip is None:
            norm = engine.get_global_grad_norm()
        applied = math.isfinite(norm) and engine.was_step_applied()
        loads = self._balancer.update(counted=applied)
        sum_over_ranks(totals)
        means = {name: float(totals[i]) / max(1.0, counts[name]) for i, name in enumerate(names)}
        return StepResult(
            step=step + 1,
            loss=means.pop("cross_entropy"),
            learning_rate=rate,
            grad_norm=float(norm),
            targets=int(counts["cross_entropy"]),
            tokens=int(tokens),
            seconds=time.monotonic() - began,
            terms=means,
            loads=loads,
            skipped=None if applied else self._reason(totals),
            loss_scale=engine.optimizer.loss_scale if engine.fp16_enabled() else None,
        )

    def _reason(self, totals: torch.Tensor) -> Literal["non_finite", "loss_scale"]:
        """Why a step was skipped: under fp16, where the loss is finite, its scale, while that can be lowered."""
        if not self._engine.fp16_enabled() or not bool(totals.isfinite().all()):
            return "non_finite"
        scaler = self._engine.optimizer.loss_scaler
        return "loss_scale" if scaler.cur_scale > scaler.min_scale else "non_finite"

    def _counts(self, batches: Sequence[Batch]) -> tuple[dict[str, float], float]:
        """What each loss's mean is over in the global batch, and the tokens that are computed."""
        own = [self._objective.counts(batch) for batch in batches]
        names = list(self._objective.weights)
        sizes = [*(sum(counts[name] for counts in own) for name in names), sum(b.inputs.numel() for b in batches)]
        *sums, tokens = sum_over_ranks(torch.tensor(sizes, dtype=torch.float64)).tolist()
        return dict(zip(names, sums, strict=True)), tokens

    def _asked_to_stop(self) -> bool:
        """Whether any rank was signalled; all ranks leave at the same step. What hooks ask goes along."""
        asked = [list(hook.poll()) for hook in self._hooks]
        sums = sum_over_ranks(torch.tensor([float(self._stop.requested), *(n for own in asked for n in own)])).tolist()
        stop = sums.pop(0) > 0
        for hook, own in zip(self._hooks, asked, strict=True):
            hook.polled(sums[: len(own)])
            sums = sums[len(own) :]
        return stop


def _telling(loss: torch.Tensor) -> torch.Tensor:
    """The loss, but where it is no finite number so are all its gradients: then every rank sees it in their norm."""
    return loss * (1 + 0 * loss.detach())
