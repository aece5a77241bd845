"""The interface of trainer callbacks: the events they can handle, and when each one occurs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from training.trainer.load_balancer import LayerLoad


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step, the same on every rank except for ``seconds``.

    Attributes:
        step: optimizer steps done, including this one.
        loss: the objective's main loss, averaged over the global batch: cross-entropy in nats per target token, or the
            loss per pair of answers.
        learning_rate: the learning rate of this step.
        grad_norm: the global gradient norm before clipping.
        targets: number of items over which ``loss`` is averaged: target tokens, or pairs of answers.
        tokens: number of tokens processed across all ranks, including padding and prompts.
        seconds: wall-clock time on this rank.
        terms: the unweighted mean of each of the objective's other losses, by name.
        loads: every router's load; empty if the step was skipped.
        skipped: why the step was skipped: ``non_finite`` if the loss or a gradient was not finite, ``loss_scale`` if
            fp16's loss scale was too high; None if the step was applied.
        loss_scale: the loss scale under fp16, else None.
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


class Callback:
    """Base class for code that runs before, between and after training steps. Override the methods you need.

    **When.** One call to ``Trainer.run`` triggers::

        on_train_begin
        for every step, until the last one or until ends_training:
            on_step_end
            reduce_inputs, on_reduced
        on_interrupt or on_train_end
        close

    After a simulated crash (``train.simulate_crash_at``), ``on_step_end`` is followed by ``close``. After a
    ``RunError``, the remaining events are ``on_failure`` and ``close``; after any other exception, only ``close``.

    **Where.** For every event, every rank calls all callbacks, in the order of ``callbacks/build.py``. Handlers for
    every event except ``reduce_inputs`` and ``close`` may therefore run collectives.

    **Errors.** A handler may raise ``RunError``, which ends training with exit status 1, but every rank must raise it
    at the same step. Any other exception indicates a bug or a machine failure, and terminates this process.
    """

    def on_train_begin(self) -> None:
        """Called before the first step. The engine is restored and in training mode."""

    def on_step_end(self, result: StepResult) -> None:
        """Called after every optimizer step, including skipped steps."""

    def reduce_inputs(self) -> Sequence[float]:
        """Return this rank's numbers, which are summed over all ranks after every step.

        A callback must return the same number of values on every call. The trainer sums the values of all callbacks in
        one collective, so this method must not run collectives itself.
        """
        return ()

    def on_reduced(self, sums: Sequence[float]) -> None:
        """Called right after ``reduce_inputs``, with this callback's numbers summed over all ranks."""

    def ends_training(self) -> bool:
        """Return whether training is complete before its last step. Every rank must return the same."""
        return False

    def on_interrupt(self, step: int) -> None:
        """Called when a signal stops training early, after ``step`` steps."""

    def on_train_end(self, step: int) -> None:
        """Called when training is complete, after ``step`` steps."""

    def on_failure(self) -> None:
        """Called on all ranks when a ``RunError`` ends training. Must not raise."""

    def close(self) -> None:
        """Called last, no matter how training ended. Must not run collectives: other ranks may already be gone."""
