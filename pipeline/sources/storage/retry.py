"""Retry network calls, with exponential backoff and a limited number of attempts."""

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from artefacts.errors import RequestError, UnreachableError

T = TypeVar("T")

#: Maximum number of attempts.
ATTEMPTS = 6
#: The same for the first request to a source, which is more likely to fail because of a wrong name or missing
#: credentials.
FIRST_ATTEMPTS = 3
#: Seconds to wait after the first attempt.
FIRST_WAIT = 1.0


def retry(call: Callable[[], T], what: str, final: tuple[type[Exception], ...] = (), attempts: int = ATTEMPTS) -> T:
    """Return the result of ``call``. Retry after every exception except RequestError and ``final``.

    Raises:
        UnreachableError: all attempts failed.
    """

    def give_up(state: RetryCallState) -> T:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        raise UnreachableError(
            f"{what}: failed {attempts} times in a row, the last time with {in_one_line(error)}: "
            "check the network and start again; finished work is kept"
        ) from None

    return Retrying(
        # Each client library has its own network errors, so list the exceptions that should not be retried instead.
        retry=retry_if_exception(lambda e: isinstance(e, Exception) and not isinstance(e, (RequestError, *final))),
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(multiplier=FIRST_WAIT),
        retry_error_callback=give_up,
    )(call)


def in_one_line(error: BaseException) -> str:
    """Return an exception's type and text without newlines, for a message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__
