"""Scalars for TensorBoard, all of a step in one record.

``SummaryWriter.add_scalar`` writes a record for each value, 40 microseconds apiece, of the step's time: with the
routers' values that came to a millisecond a step. TensorBoard shows both alike.
"""

from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter


class Board:
    """An event file of TensorBoard in a folder."""

    def __init__(self, folder: Path, start: int) -> None:
        """Begin a new file; what older files there hold from step ``start`` on is not shown any more."""
        self._writer = FileWriter(str(folder))
        # The two records by which TensorBoard knows a restart, as SummaryWriter(purge_step=...) writes them.
        self._writer.add_event(Event(file_version="brain.Event:2"), start)
        self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), start)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """A step's values by the name of their curve."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_summary(Summary(value=scalars), step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
