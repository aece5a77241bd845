"""Scalars for TensorBoard, all of a step in one record, written when given.

``SummaryWriter`` writes a record for each value, 40 microseconds apiece, of the step's time: with the routers' values
that came to a millisecond a step. And its thread dies of a full disk, told at some later record and for good.
"""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

#: Tells files apart that one process begins in one second.
_numbers = itertools.count()


class Board:
    """An event file of TensorBoard in a folder; OSError from any method: it is not to be written to any more."""

    def __init__(self, folder: Path, start: int) -> None:
        """Begin a new file; what older files there hold from step ``start`` on is not shown any more."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._writer = RecordWriter(open(folder / name, "wb"))  # noqa: SIM115 - open as long as the run
        try:
            # The two records by which TensorBoard knows a restart, as SummaryWriter(purge_step=...) writes them.
            self._add(start, file_version="brain.Event:2")
            self._add(start, session_log=SessionLog(status=SessionLog.START))
        except OSError:
            with contextlib.suppress(OSError):
                self.close()
            (folder / name).unlink()  # or a disk that stays full would get one at every step
            raise

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A step's values by the name of their curve."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=scalars))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def _add(self, step: int, **content: object) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()
