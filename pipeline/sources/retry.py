"""Patience with networks: a bounded number of attempts, waiting twice as long after each."""

import time
from collections.abc import Callable
from typing import TypeVar

from configs.errors import RequestError, UnreachableError

T = TypeVar("T")

#: Attempts in a row that may fail before a source is given up in the middle.
ATTEMPTS = 6
#: The same of the first question to it, where a wrong name or a missing key is likelier than a bad moment.
FIRST_ATTEMPTS = 3
#: Seconds to wait after the first of them.
FIRST_WAIT = 1.0


def wait(failed: int, what: str, error: Exception, attempts: int = ATTEMPTS) -> None:
    """Wait before another of ``attempts``, after ``failed`` in a row.

    Raises:
        UnreachableError: those were all.
    """
    if failed >= attempts:
        raise UnreachableError(
            f"{what}: failed {failed} times in a row, the last time with {in_one_line(error)}: "
            "check the network and start again; what is finished is kept"
        ) from None
    time.sleep(FIRST_WAIT * 2 ** (failed - 1))


def patiently(call: Callable[[], T], what: str, final: tuple[type[Exception], ...] = (), attempts: int = ATTEMPTS) -> T:
    """The result of ``call``, tried again when it fails with anything but ``final``.

    Raises:
        UnreachableError: the attempts are used up.
    """
    failed = 0
    while True:
        try:
            return call()
        except Exception as error:
            # Each client library has its own family of network errors, so it is the others that are named.
            if isinstance(error, (RequestError, *final)):
                raise
            failed += 1
            wait(failed, what, error, attempts)


def in_one_line(error: BaseException) -> str:
    """An exception for a message: its type and what it says, without line breaks."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
