"""SIGTERM, SIGUSR1 and Ctrl-C as exceptions, which no callback can lose.

The handler raises where the program is. Where that happens to be a destructor, a callback from C or the import of an
extension, the exception is lost or becomes another; so it is also remembered: ``check`` raises it again at the next
step of the work, and a command that ends in a fault asks for it first.
"""

import signal
from collections.abc import Callable
from types import FrameType

from artefacts.errors import StoppedError

_NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


_pending: list[KeyboardInterrupt] = []


def _stop(number: int, _: object) -> None:
    _pending.append(KeyboardInterrupt() if number == signal.SIGINT else StoppedError(signal.Signals(number).name))
    raise _pending[-1]


def install() -> None:
    """From now on SIGTERM (an end of time) and SIGUSR1 (SLURM's warning of it) raise ``StoppedError``.

    Ctrl-C raises KeyboardInterrupt, as ever.
    """
    for number in _NUMBERS:
        signal.signal(number, _stop)


def end() -> None:
    """From now on the signals that ``install`` took change nothing: what the command is to answer is settled."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN)


def pending() -> KeyboardInterrupt | None:
    """What the last signal raised; None: there was none."""
    return _pending[-1] if _pending else None


def check() -> None:
    """For loops over the work: raises what a signal has raised before."""
    if stop := pending():
        raise stop


class StopRequest:
    """Set by SIGTERM or SIGUSR1 (what SLURM and torchrun send before the time is up), once it listens."""

    def __init__(self, report_listening: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._tell_listening = report_listening

    def listen(self) -> None:
        """From here on a signal asks the loop to save and stop, and the launcher knows that it may send one.

        Earlier there is nothing to save, and a rank that waits for others could not react: signals end the process.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)
        self._tell_listening()

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
