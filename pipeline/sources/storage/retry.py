"""Calls to networks are repeated: a bounded number of attempts, waiting twice as long after each."""

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from artefacts.errors import RequestError, UnreachableError

T = TypeVar("T")

#: Attempts in a row that may fail before a source is given up in the middle.
ATTEMPTS = 6
#: The same of the first question to it, where a wrong name or a missing key is likelier than a bad moment.
FIRST_ATTEMPTS = 3
#: Seconds to wait after the first of them.
FIRST_WAIT = 1.0


def retry(call: Callable[[], T], what: str, final: tuple[type[Exception], ...] = (), attempts: int = ATTEMPTS) -> T:
    """The result of ``call``, tried again when it fails with anything but ``final``.

    Raises:
        UnreachableError: the attempts are used up.
    """

    def give_up(state: RetryCallState) -> T:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        raise UnreachableError(
            f"{what}: failed {attempts} times in a row, the last time with {in_one_line(error)}: "
            "check the network and start again; what is finished is kept"
        ) from None

    return Retrying(
        # Each client library has its own family of network errors, so it is the others that are named.
        retry=retry_if_exception(lambda e: isinstance(e, Exception) and not isinstance(e, (RequestError, *final))),
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(multiplier=FIRST_WAIT),
        retry_error_callback=give_up,
    )(call)


def in_one_line(error: BaseException) -> str:
    """An exception for a message: its type and what it says, without line breaks."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__
