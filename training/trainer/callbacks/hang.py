"""A run that stands still: every rank writes down where, and dies, so that it can be started again.

Both happen without the interpreter, which a rank may never return to: faulthandler's thread needs no lock of it, and
SIGALRM ends the process in the kernel.
"""

import faulthandler
import signal
from pathlib import Path
from types import TracebackType

from training.trainer.trainer import Hook, StepResult

#: Seconds between the dump and the end: the ranks' clocks start within a step of each other, and one that dies first
#: may take the others with it before they have told.
_GRACE = 5


class HangHook(Hook):
    """Armed from its beginning as a context manager to its end, anew after every step; other hooks come before it."""

    def __init__(self, folder: Path, seconds: int, rank: int) -> None:
        """``folder``: for the stacks, a file a rank; ``seconds``: without a step; 0: never."""
        self._path, self._seconds = folder / f"rank-{rank:05d}.txt", seconds

    def __enter__(self) -> "HangHook":
        if self._seconds:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "w", encoding="utf-8")
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
            signal.alarm(0)
            self._file.close()
            if not self._path.stat().st_size:
                self._path.unlink()

    def after_step(self, result: StepResult) -> None:
        if self._seconds:
            self._arm()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(self._seconds, file=self._file)
        signal.alarm(self._seconds + _GRACE)
