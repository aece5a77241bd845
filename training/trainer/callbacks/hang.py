"""Terminates a run that hangs: every rank dumps its stack to a file and exits, so that the run can be restarted.

A hung rank may never return to the Python interpreter, so neither the dump nor the exit depends on it: faulthandler's
thread does not need the GIL, and SIGALRM makes the kernel kill the process.
"""

import faulthandler
import signal
from typing import TextIO

from training.trainer.callback import Callback, StepResult
from training.trainer.context import TrainingContext

#: Seconds between the stack dump and the SIGALRM. The ranks restart their timers at slightly different times,
#: and the first rank to die may bring down the others before they have dumped their stacks.
_GRACE = 5


class HangCallback(Callback):
    """A timer that is restarted after every step. ``train.watch.hang_seconds`` is its duration; 0 disables it."""

    def __init__(self, context: TrainingContext) -> None:
        self._path = context.run.stacks / f"rank-{context.ranks.rank:05d}.txt"
        self._seconds = context.train.watch.hang_seconds
        self._file: TextIO | None = None

    def on_train_begin(self) -> None:
        if self._seconds:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115 - stays open until the run ends
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            self._restart(self._file)

    def on_step_end(self, result: StepResult) -> None:
        if self._file is not None:
            self._restart(self._file)

    def close(self) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            signal.alarm(0)
            self._file.close()
            if not self._path.stat().st_size:
                self._path.unlink()

    def _restart(self, file: TextIO) -> None:
        faulthandler.dump_traceback_later(self._seconds, file=file)
        signal.alarm(self._seconds + _GRACE)
