"""Where numbers go that a run can do without: a failure is told once and costs no step."""

import contextlib
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from artefacts.progress import warn


class Closing(Protocol):
    """What a sink opens; its methods may raise OSError."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closing)


class Sink(Generic[T]):
    """Something open for writing; after a failure it is opened anew at the next write."""

    def __init__(self, name: str, opened: Callable[[int], T]) -> None:
        """``name``: what a warning calls it; ``opened``: opens it, to be written to from a step on."""
        self._name, self._opened = name, opened
        self._there: T | None = None
        self._told = False

    def open(self, step: int) -> None:
        """Open it where it is not."""
        self.write(step, lambda _: None)

    def write(self, step: int, put: Callable[[T], None]) -> None:
        """Call ``put`` with what is open; the first failure in a row is told."""
        try:
            if self._there is None:
                self._there = self._opened(step)
            put(self._there)
        except OSError as error:
            self.close()
            if not self._told:
                warn(f"{self._name} cannot be written ({error.strerror}): training goes on without it")
            self._told = True
        else:
            self._told = False

    def close(self) -> None:
        """Close it where it is open; what cannot be written is lost."""
        there, self._there = self._there, None
        if there is not None:
            with contextlib.suppress(OSError):
                there.close()
