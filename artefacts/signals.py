"""SIGTERM, SIGUSR1 and Ctrl-C as exceptions.

The handler raises an exception wherever the program is. In a destructor, a callback from C or the import of an
extension, the exception can be lost or replaced by another one. So it is also recorded: ``check`` raises it again at
the next step of the work, and a command that fails looks at ``pending`` first.
"""

import signal
from collections.abc import Callable
from types import FrameType

from artefacts.errors import StoppedError

_NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


#: What the signals received so far have raised.
_pending: list[KeyboardInterrupt] = []


def _stop(number: int, _: object) -> None:
    _pending.append(KeyboardInterrupt() if number == signal.SIGINT else StoppedError(signal.Signals(number).name))
    raise _pending[-1]


def install() -> None:
    """Let SIGTERM (the time is up) and SIGUSR1 (SLURM's warning before that) raise ``StoppedError``.

    Ctrl-C raises KeyboardInterrupt, as always.
    """
    for number in _NUMBERS:
        signal.signal(number, _stop)


def end() -> None:
    """Ignore the signals of ``install`` from now on: the exit status of the command is decided."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN)


def pending() -> KeyboardInterrupt | None:
    """What the last signal raised; None: there was no signal."""
    return _pending[-1] if _pending else None


def check() -> None:
    """Raise what the last signal raised. To be called in long loops."""
    if stop := pending():
        raise stop


class StopRequest:
    """Set by SIGTERM or SIGUSR1, which SLURM and torchrun send before the time is up.

    Attributes:
        requested: a signal was received after ``listen``.
    """

    def __init__(self, report_listening: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._report_listening = report_listening

    def listen(self) -> None:
        """Treat signals as requests to save and stop, and report this to the launcher.

        Before that, signals end the process: there is nothing to save, and a rank that waits for others cannot react.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._request)
        self._report_listening()

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
