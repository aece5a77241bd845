"""The training loop: it runs one optimizer step per global batch and leaves everything else to callbacks."""

import math
import time
from collections.abc import Sequence
from enum import Enum, auto
from typing import Literal

import torch

from artefacts.errors import RunError
from training.data.batch import Batch
from training.distributed.ranks import sum_over_ranks, widest
from training.engine.deepspeed_config import clips_in_trainer
from training.engine.gradients import clip_global_norm
from training.optim.schedules import learning_rate
from training.trainer.callback import Callback, StepResult
from training.trainer.context import TrainingContext


class Ended(Enum):
    """How training ended: complete, on a signal, or at ``train.simulate_crash_at``."""

    DONE = auto()
    STOPPED = auto()
    ABORTED = auto()


class Trainer:
    """Runs the optimizer steps of one training run.

    Attributes:
        step: number of optimizer steps done.
    """

    def __init__(self, context: TrainingContext, callbacks: Sequence[Callback]) -> None:
        """Initialize the trainer.

        Args:
            context: this run.
            callbacks: called in this order; see ``training.trainer.callbacks.build``.
        """
        self._context, self._callbacks = context, callbacks
        self.step = context.start_step
        # The trainer clips gradients itself where DeepSpeed would compute the wrong norm.
        self._max_grad_norm = context.train.max_grad_norm if clips_in_trainer(context.train) else None

    def run(self) -> Ended:
        """Train from ``context.start_step`` until a signal, ``train.simulate_crash_at``, or training is complete.

        Training is complete after the last step, or when a callback ends it early.

        Raises:
            RunError: training cannot continue, or its result could not be saved.
        """
        try:
            return self._run()
        except RunError:
            for callback in self._callbacks:
                callback.on_failure()
            raise
        finally:
            for callback in self._callbacks:
                callback.close()

    def _run(self) -> Ended:
        self._context.engine.train()
        for callback in self._callbacks:
            callback.on_train_begin()
        ended = self.run_steps(self.step, self._context.train.steps)
        if ended is Ended.DONE:
            for callback in self._callbacks:
                callback.on_train_end(self.step)
        return ended

    def run_steps(self, start: int, end: int) -> Ended:
        """Run steps ``start`` .. ``end``-1. Triggers the per-step events and ``on_interrupt``, but no other events."""
        train = self._context.train
        for step in range(start, end):
            if self._is_complete():
                break
            result = self._step(step)
            self.step = result.step
            for callback in self._callbacks:
                callback.on_step_end(result)
            unfinished = not self._is_complete()
            if unfinished and train.simulate_crash_at is not None and result.step >= train.simulate_crash_at:
                return Ended.ABORTED
            if self._reduce() and unfinished:
                for callback in self._callbacks:
                    callback.on_interrupt(result.step)
                return Ended.STOPPED
        return Ended.DONE

    def _is_complete(self) -> bool:
        """Return whether all steps are done, or a callback has ended training. A resumed run may start complete."""
        done = self.step >= self._context.train.steps
        return done or any(callback.ends_training() for callback in self._callbacks)

    def _step(self, step: int) -> StepResult:
        began = time.monotonic()
        context, engine, ranks = self._context, self._context.engine, self._context.ranks
        rate = self._set_learning_rate(step)
        batches = context.data.micro_batches(step, ranks.rank, ranks.size, engine.train_micro_batch_size_per_gpu())
        counts, tokens = self._counts(batches)
        totals, norm = self._forward_backward(batches, counts)
        applied = math.isfinite(norm) and engine.was_step_applied()
        loads = context.balancer.update(counted=applied)
        sum_over_ranks(totals)
        means = {name: float(totals[i]) / max(1.0, counts[name]) for i, name in enumerate(context.objective.weights)}
        main = next(iter(means))
        return StepResult(
            step=step + 1,
            loss=means.pop(main),
            learning_rate=rate,
            grad_norm=float(norm),
            targets=int(counts[main]),
            tokens=int(tokens),
            seconds=time.monotonic() - began,
            terms=means,
            loads=loads,
            skipped=None if applied else self._why_skipped(totals),
            loss_scale=engine.optimizer.loss_scale if engine.fp16_enabled() else None,
        )

    def _set_learning_rate(self, step: int) -> float:
        train = self._context.train
        rate = learning_rate(step, train.steps, train.learning_rate, train.schedule)
        for group in self._context.engine.optimizer.param_groups:
            group["lr"] = rate * group.get("rate_scale", 1.0)
        return rate

    def _counts(self, batches: Sequence[Batch]) -> tuple[dict[str, float], float]:
        """Return each loss's denominator for the global batch, and the number of tokens in that batch."""
        objective = self._context.objective
        per_batch = [objective.counts(batch) for batch in batches]
        names = list(objective.weights)
        local = [sum(counts[name] for counts in per_batch) for name in names]
        local.append(sum(batch.inputs.numel() for batch in batches))
        *sums, tokens = sum_over_ranks(torch.tensor(local, dtype=torch.float64)).tolist()
        return dict(zip(names, sums, strict=True)), tokens

    def _forward_backward(self, batches: Sequence[Batch], counts: dict[str, float]) -> tuple[torch.Tensor, float]:
        """Run all micro-batches and the optimizer step. Returns this rank's loss sums and the gradient norm.

        DeepSpeed divides the loss by the number of accumulation steps and averages gradients over ranks. ``scales``
        undoes both, so that losses are averaged over the global batch for any number of ranks and micro-batches.
        """
        engine, ranks, objective = self._context.engine, self._context.ranks, self._context.objective
        names = list(objective.weights)
        undo_averaging = len(batches) * ranks.size
        scales = {name: undo_averaging * objective.weights[name] / max(1.0, counts[name]) for name in names}
        totals = torch.zeros(len(names), dtype=widest(ranks.device), device=ranks.device)
        for batch in batches:
            sums = objective(engine, batch.to(ranks.device))
            engine.backward(poison_non_finite(torch.stack([sums[name] * scales[name] for name in names]).sum()))
            totals += torch.stack([sums[name].detach() for name in names])
            if self._max_grad_norm is not None and engine.is_gradient_accumulation_boundary():
                norm = clip_global_norm(engine.module, self._max_grad_norm)
            engine.step()
        if self._max_grad_norm is None:
            norm = engine.get_global_grad_norm()
        return totals, norm

    def _why_skipped(self, totals: torch.Tensor) -> Literal["non_finite", "loss_scale"]:
        """Return the reason for skipping a step.

        Under fp16, the reason is ``loss_scale`` if the loss is finite and the loss scale can still be lowered.
        """
        engine = self._context.engine
        if not engine.fp16_enabled() or not bool(totals.isfinite().all()):
            return "non_finite"
        scaler = engine.optimizer.loss_scaler
        return "loss_scale" if scaler.cur_scale > scaler.min_scale else "non_finite"

    def _reduce(self) -> bool:
        """Sum the callbacks' numbers over ranks. Returns whether any rank received a signal to stop.

        A single collective exchanges both the numbers and the signals, and makes all ranks stop at the same step.
        """
        inputs = [list(callback.reduce_inputs()) for callback in self._callbacks]
        flat = [float(self._context.stop.requested), *(number for numbers in inputs for number in numbers)]
        sums = sum_over_ranks(torch.tensor(flat)).tolist()
        stop = sums.pop(0) > 0
        for callback, numbers in zip(self._callbacks, inputs, strict=True):
            callback.on_reduced(sums[: len(numbers)])
            sums = sums[len(numbers) :]
        return stop


def poison_non_finite(loss: torch.Tensor) -> torch.Tensor:
    """Return a finite loss unchanged. Otherwise return NaN, so that all gradients are NaN.

    Every rank then sees a non-finite gradient norm.
    """
    return loss * (1 + 0 * loss.detach())
