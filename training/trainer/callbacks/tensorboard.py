"""Scalars for TensorBoard, with all values of a step in one record that is written immediately.

``SummaryWriter`` writes one record per value, at 40 microseconds each: with the routers' values that came to a
millisecond per step. Its thread also dies when the disk is full, and reports so only with some later record.
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

#: Distinguishes files that one process opens within one second.
_numbers = itertools.count()


class TensorBoardWriter:
    """An event file of TensorBoard. After an OSError from any method it must not be written to again."""

    def __init__(self, folder: Path, start: int) -> None:
        """Open a new file; TensorBoard then hides what older files in the folder hold from step ``start`` on."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._writer = RecordWriter(open(folder / name, "wb"))  # noqa: SIM115 - open as long as the run
        try:
            # The two records that mark a restart, as SummaryWriter(purge_step=...) writes them.
            self._add(start, file_version="brain.Event:2")
            self._add(start, session_log=SessionLog(status=SessionLog.START))
        except OSError:
            with contextlib.suppress(OSError):
                self.close()
            (folder / name).unlink()  # or a disk that stays full would gain one file per step
            raise

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write a step's values by the name of their curve."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=scalars))

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._writer.close()

    def _add(self, step: int, **content: object) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()
