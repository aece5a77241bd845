"""What a callback of the trainer may do, and when it is called."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from training.trainer.load_balancer import LayerLoad


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step, the same on every rank except for ``seconds``.

    Attributes:
        step: optimizer steps done, including this one.
        loss: cross-entropy in nats per target token, over the global batch.
        learning_rate: of this step.
        grad_norm: before clipping.
        targets: target tokens over all ranks.
        tokens: tokens computed over all ranks, padding and prompts included.
        seconds: wall time on this rank.
        terms: the mean of every other loss of the objective, before its weight.
        loads: the load of every router; empty if the step was skipped.
        skipped: why the step changed nothing: ``non_finite`` if the loss or a gradient was not finite, ``loss_scale``
            if fp16's loss scale was too high; None if the step was applied.
        loss_scale: under fp16, else None.
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
    """Something that happens around training steps. Override the events that you need.

    **When.** One call of ``Trainer.run`` triggers::

        on_train_begin
        for every step:
            on_step_begin
            on_step_end
            reduce_inputs, on_reduced
        on_interrupt or on_train_end
        close

    A crash that is simulated (``train.simulate_crash_at``) goes from ``on_step_end`` to ``close``. A ``RunError`` goes
    from where it was raised to ``on_failure`` and ``close``; any other exception goes to ``close`` alone.

    **Where.** Every rank calls every event of every callback, in the order of ``callbacks/build.py``. An event may
    therefore run collectives, with two exceptions that are noted below.

    **Errors.** An event may raise ``RunError``, and then must do so on every rank at the same step: it ends training
    with exit status 1. Any other exception is a bug, or a fault of this machine, and ends this process.
    """

    def on_train_begin(self) -> None:
        """Before the first step; the engine is in training mode and restored."""

    def on_step_begin(self, step: int) -> None:
        """Before optimizer step ``step``, counted from 1."""

    def on_step_end(self, result: StepResult) -> None:
        """After every optimizer step, including one that was skipped."""

    def reduce_inputs(self) -> Sequence[float]:
        """Numbers of this rank to be summed over all ranks after every step.

        There must always be the same number of them. The trainer sums the numbers of all callbacks in one collective,
        so the event must not run any.
        """
        return ()

    def on_reduced(self, sums: Sequence[float]) -> None:
        """The sums over all ranks of what ``reduce_inputs`` returned, directly after it."""

    def on_interrupt(self, step: int) -> None:
        """A signal ended training after ``step`` steps, before the last one."""

    def on_train_end(self, step: int) -> None:
        """All ``step`` steps are done."""

    def on_failure(self) -> None:
        """A ``RunError`` ended training, on all ranks. Must not raise."""

    def close(self) -> None:
        """Training is over, whatever ended it. Other ranks may be gone, so the event must not run collectives."""
