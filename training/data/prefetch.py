"""Prefetching: a thread prepares the batches of the next steps while the current step runs."""

import queue
import threading
from types import TracebackType

import torch

from training.data.batch import Batch, Data

#: Seconds between the thread's checks for a request to stop.
_PATIENCE = 0.1


class Prefetched:
    """A wrapper around ``Data`` that prefetches the batches of the next steps, into pinned memory on CUDA.

    It is a context manager that stops the thread on exit. ``micro_batches`` re-raises the thread's errors.
    """

    def __init__(self, data: Data, depth: int, steps: int, device: torch.device) -> None:
        """Initialize the wrapper. The thread starts on the first call to ``micro_batches``.

        Args:
            data: the data to prefetch.
            depth: number of steps to prefetch; 0 disables the thread.
            steps: total number of steps, after which nothing is prefetched.
            device: the device on which the batches will be used.
        """
        self._data, self._depth, self._steps, self._device = data, depth, steps, device
        self._ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(max(1, depth))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._expected: tuple[int, int, int, int] | None = None

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """Return this rank's micro-batches of optimizer step ``step``.

        If the step does not directly follow the previous one, prefetching restarts at this step.
        """
        if not self._depth:
            return self._data.micro_batches(step, rank, ranks, micro_batch)
        if self._expected != (step, rank, ranks, micro_batch):
            self.close()
            self._start(step, rank, ranks, micro_batch)
        batches = self._ready.get()
        if isinstance(batches, BaseException):
            self.close()
            raise batches
        self._expected = (step + 1, rank, ranks, micro_batch) if step + 1 < self._steps else None
        return batches

    def close(self) -> None:
        """Stop the thread and discard the prefetched batches."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = self._expected = None

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, step: int, rank: int, ranks: int, micro_batch: int) -> None:
        self._ready, self._stop = queue.Queue(self._depth), threading.Event()
        arguments = (self._ready, self._stop, step, rank, ranks, micro_batch)
        self._thread = threading.Thread(target=self._read, args=arguments, name="prefetch", daemon=True)
        self._thread.start()

    def _read(
        self,
        ready: "queue.Queue[list[Batch] | BaseException]",
        stop: threading.Event,
        step: int,
        rank: int,
        ranks: int,
        micro_batch: int,
    ) -> None:
        try:
            if self._device.type == "cuda":
                # The current device is per thread: without this, every rank would open a context on the first GPU.
                torch.cuda.set_device(self._device)
            for number in range(step, max(step + 1, self._steps)):
                batches = self._data.micro_batches(number, rank, ranks, micro_batch)
                if self._device.type == "cuda":
                    batches = [batch.pinned() for batch in batches]
                if not _put(ready, stop, batches):
                    return
        except BaseException as error:
            _put(ready, stop, error)


def _put(
    ready: "queue.Queue[list[Batch] | BaseException]", stop: threading.Event, item: list[Batch] | BaseException
) -> bool:
    """Put an item into the queue. Returns False if prefetching was stopped before there was room."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_PATIENCE)
            return True
        except queue.Full:
            continue
    return False
