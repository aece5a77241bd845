"""SIGTERM and SIGUSR1 as an exception, which no callback can lose.

The handler raises where the program is. Where that happens to be a destructor or a callback from C, Python prints the
exception and goes on; so the request is also remembered, and ``check`` raises it again at the next step of the work.
"""

import signal

from configs.errors import StoppedError

_asked: list[str] = []


def _stop(number: int, _: object) -> None:
    _asked.append(signal.Signals(number).name)
    raise StoppedError(_asked[-1])


def install() -> None:
    """From now on SIGTERM (an end of time) and SIGUSR1 (SLURM's warning of it) raise ``StoppedError``."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)


def check() -> None:
    """For loops over the work: raises ``StoppedError`` where a signal has come before."""
    if _asked:
        raise StoppedError(_asked[-1])
