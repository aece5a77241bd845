"""Signals ask the loop to save and leave; they never interrupt a step."""

import signal
from collections.abc import Callable
from types import FrameType


class StopRequest:
    """Set by SIGTERM or SIGUSR1 (what SLURM and torchrun send before the time is up), once it listens."""

    def __init__(self, tell_listening: Callable[[], None] = lambda: None) -> None:
        self.asked = False
        self._tell_listening = tell_listening

    def listen(self) -> None:
        """From here on a signal asks the loop to save and stop, and the launcher knows that it may send one.

        Earlier there is nothing to save, and a rank that waits for others could not react: signals end the process.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)
        self._tell_listening()

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
