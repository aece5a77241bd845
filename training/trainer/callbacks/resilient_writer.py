"""A wrapper for nonessential writers: a failed write is reported once and does not stop the run."""

import contextlib
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from artefacts.progress import warn


class Closable(Protocol):
    """A file or stream whose methods may raise OSError."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


class ResilientWriter(Generic[T]):
    """A wrapper around a writer. After a failed write, the next write reopens it."""

    def __init__(self, name: str, open_writer: Callable[[int], T]) -> None:
        """Initialize the wrapper without opening the writer.

        Args:
            name: the writer's name in warnings.
            open_writer: opens the writer; called with the current step.
        """
        self._name, self._open_writer = name, open_writer
        self._writer: T | None = None
        self._warned = False

    def open(self, step: int) -> None:
        """Open the writer unless it is already open."""
        self.write(step, lambda _: None)

    def write(self, step: int, put: Callable[[T], None]) -> None:
        """Call ``put`` with the open writer. If several writes in a row fail, only the first failure is reported."""
        try:
            if self._writer is None:
                self._writer = self._open_writer(step)
            put(self._writer)
        except OSError as error:
            self.close()
            if not self._warned:
                warn(f"{self._name} cannot be written ({error.strerror}): training continues without it")
            self._warned = True
        else:
            self._warned = False

    def close(self) -> None:
        """Close the writer if it is open. Buffered data that cannot be written is lost."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
