"""Checkpoints at their steps."""

from collections.abc import Callable, Sequence
from typing import Any

from training.checkpoint.save import Saver
from training.trainer.trainer import Hook, StepResult


class CheckpointHook(Hook):
    """Saves every so many steps, when a signal stops the run, and at the end; the last two wait until it is written."""

    def __init__(
        self,
        saver: Saver,
        every: int,
        start: int,
        counts: Callable[[int], dict[str, Any]],
        state: Callable[[], dict[str, Any]],
    ) -> None:
        """Arrange for saving.

        Args:
            saver: what writes.
            every: steps between checkpoints; 0: none on the way.
            start: the step resumed from, which is saved already.
            counts: what the manifest counts at a step.
            state: what else is to be restored.
        """
        self._saver, self._every, self._last = saver, every, start
        self._counts, self._state = counts, state

    def after_step(self, result: StepResult) -> None:
        if self._every and result.step % self._every == 0:
            self._begin(result.step)

    def poll(self) -> Sequence[float]:
        return self._saver.poll()

    def polled(self, sums: Sequence[float]) -> None:
        self._saver.polled(sums)

    def at_stop(self, step: int) -> None:
        self._finish(step)

    def at_end(self, step: int) -> None:
        self._finish(step)

    def at_failure(self) -> None:
        """What was begun before is whole, and written before the run's lock goes."""
        self._saver.drain()

    def _begin(self, step: int) -> None:
        if step != self._last:
            self._saver.begin(step, self._counts(step), self._state())
            self._last = step

    def _finish(self, step: int) -> None:
        """Raises ``RunError`` where the checkpoint at this step, begun now or before, is not on disk."""
        self._begin(step)
        self._saver.finish()
