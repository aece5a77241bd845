"""Signals ask the loop to save and leave; they never interrupt a step. Ready before torch is imported."""

import signal
from types import FrameType


class StopRequest:
    """Set by SIGTERM or SIGUSR1 (what SLURM and torchrun send before the time is up)."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
