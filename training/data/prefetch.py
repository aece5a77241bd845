"""Prefetching: a thread prepares the batches of the next steps while the current step is computed."""

import queue
import threading
from types import TracebackType

import torch

from training.data.batch import Batch, Data

#: Seconds between the thread's checks whether it has to stop.
_PATIENCE = 0.1


class Prefetched:
    """Wraps ``Data`` and keeps the batches of ``depth`` steps ready, in pinned memory if they go to a GPU.

    A context manager, which stops the thread on exit. An error in the thread is raised by ``micro_batches``.
    """

    def __init__(self, data: Data, depth: int, steps: int, device: torch.device) -> None:
        """``depth``: 0 reads without a thread; ``steps``: where to stop; ``device``: where the batches will be used."""
        self._data, self._depth, self._steps, self._device = data, depth, steps, device
        self._ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(max(1, depth))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._expected: tuple[int, int, int, int] | None = None

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step ``step``; a step that is not the next one restarts reading."""
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
        """Stop the thread and drop what it has read."""
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
                # The current device is a setting per thread: without this every rank would open the first GPU.
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
    """Put an item into the queue; False if reading was stopped before there was room."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_PATIENCE)
            return True
        except queue.Full:
            continue
    return False
