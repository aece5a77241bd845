"""SIGTERM, SIGUSR1 and Ctrl-C as exceptions.

The handler raises an exception in whatever code is running. In a destructor, in a callback from C, or during the import
of an extension module, the exception can be lost or replaced by another. The exception is therefore also recorded, and
the next call to ``check`` raises it again. When a command fails, the exception from ``pending``, if any, takes
precedence over the command's own error.
"""

import signal
from collections.abc import Callable
from types import FrameType

from artefacts.errors import StoppedError

_NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


#: The exceptions that signals have raised so far.
_pending: list[KeyboardInterrupt] = []


def _stop(number: int, _: object) -> None:
    _pending.append(KeyboardInterrupt() if number == signal.SIGINT else StoppedError(signal.Signals(number).name))
    raise _pending[-1]


def install() -> None:
    """Make SIGTERM (the time is up) and SIGUSR1 (SLURM's advance warning) raise ``StoppedError``.

    Ctrl-C still raises KeyboardInterrupt.
    """
    for number in _NUMBERS:
        signal.signal(number, _stop)


def end() -> None:
    """Ignore all further signals that ``install`` handles, because the command's exit status is already decided."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN)


def pending() -> KeyboardInterrupt | None:
    """Return the exception that the last signal raised, or None if there was no signal."""
    return _pending[-1] if _pending else None


def check() -> None:
    """If a signal was received, raise the last signal's exception again. Call this in long loops."""
    if stop := pending():
        raise stop


class StopRequest:
    """A flag that SIGTERM or SIGUSR1 sets. SLURM and torchrun send these signals before the time is up.

    Attributes:
        requested: whether a signal was received after ``listen``.
    """

    def __init__(self, report_listening: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._report_listening = report_listening

    def listen(self) -> None:
        """From now on, treat signals as requests to save and stop, and report this to the launcher.

        Before this call, signals kill the process, because there is nothing to save, and a rank that is waiting for
        other ranks could not respond.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._request)
        self._report_listening()

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
