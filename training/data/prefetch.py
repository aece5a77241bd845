"""Reading ahead: a thread makes the batches of the next steps while this one is computed."""

import queue
import threading
from types import TracebackType

import torch

from training.data.batch import Batch, Data

#: Seconds after which the thread looks whether it is still wanted.
_PATIENCE = 0.1


class Prefetched:
    """``Data`` of which ``depth`` steps are kept ready. What is read is the same; for a GPU it lies in pinned memory.

    A context manager: leaving it ends the thread. What goes wrong in the thread is raised where the batch is asked for.
    """

    def __init__(self, data: Data, depth: int, steps: int, device: torch.device) -> None:
        """``depth``: 0 reads when asked, without a thread; ``steps``: where to stop; ``device``: where batches go."""
        self._data, self._depth, self._steps, self._device = data, depth, steps, device
        self._ready: queue.Queue[list[Batch] | BaseException] = queue.Queue(max(1, depth))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._expected: tuple[int, int, int, int] | None = None

    def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
        """This rank's micro-batches of optimiser step ``step``; another step than the next begins reading anew."""
        if not self._depth:
            return self._data.micro_batches(step, rank, ranks, micro_batch)
        if self._expected != (step, rank, ranks, micro_batch):
            self.close()
            self._begin(step, rank, ranks, micro_batch)
        made = self._ready.get()
        if isinstance(made, BaseException):
            self.close()
            raise made
        self._expected = (step + 1, rank, ranks, micro_batch) if step + 1 < self._steps else None
        return made

    def close(self) -> None:
        """End the thread and forget what it read."""
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

    def _begin(self, step: int, rank: int, ranks: int, micro_batch: int) -> None:
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
                # The device is a thread's own setting: without it every rank would open the first GPU.
                torch.cuda.set_device(self._device)
            for number in range(step, max(step + 1, self._steps)):
                made = self._data.micro_batches(number, rank, ranks, micro_batch)
                if self._device.type == "cuda":
                    made = [batch.pinned() for batch in made]
                if not _put(ready, stop, made):
                    return
        except BaseException as error:
            _put(ready, stop, error)


def _put(
    ready: "queue.Queue[list[Batch] | BaseException]", stop: threading.Event, made: list[Batch] | BaseException
) -> bool:
    """Wait for room; False where nobody wants it any more."""
    while not stop.is_set():
        try:
            ready.put(made, timeout=_PATIENCE)
            return True
        except queue.Full:
            continue
    return False
