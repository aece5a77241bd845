"""Writes scalars for TensorBoard: all values of a step go into one record, which is written immediately.

``SummaryWriter`` writes one record per value, and each record takes 40 microseconds. With the routers' values, the
records took up to a millisecond per step. Also, ``SummaryWriter``'s thread dies when the disk is full, and the error
surfaces only when a later record is written.
"""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

#: Makes file names unique if one process opens several files within the same second.
_numbers = itertools.count()


class TensorBoardWriter:
    """A TensorBoard event file. After a method has raised OSError, the file must not be used for further writes."""

    def __init__(self, folder: Path, start: int) -> None:
        """Open a new file in a folder.

        From step ``start`` on, TensorBoard hides the values in the folder's older files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._writer = RecordWriter(open(folder / name, "wb"))  # noqa: SIM115 - stays open until the run ends
        try:
            # SummaryWriter(purge_step=...) marks a restart with the same two records.
            self._add(start, file_version="brain.Event:2")
            self._add(start, session_log=SessionLog(status=SessionLog.START))
        except OSError:
            with contextlib.suppress(OSError):
                self.close()
            (folder / name).unlink()  # otherwise, every step would leave a file behind while the disk is full
            raise

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write a step's values, keyed by curve name."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=scalars))

    def add_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Write (prompt, completion) pairs as texts, one tag per prompt. TensorBoard renders them as Markdown."""
        values = []
        for number, (prompt, completion) in enumerate(samples):
            lines = f"{prompt}\n---\n{completion}".splitlines()
            # An indented block is shown as it is.
            text = "\n".join(f"    {line}" for line in lines)
            tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
            metadata = create_summary_metadata(display_name="", description="")
            values.append(Summary.Value(tag=f"samples/{number}", metadata=metadata, tensor=tensor))
        self._add(step, summary=Summary(value=values))

    def close(self) -> None:
        """Flush buffered data and close the file."""
        self._writer.close()

    def _add(self, step: int, **content: object) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()
