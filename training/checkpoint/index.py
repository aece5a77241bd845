"""Checkpoint index: reads any range of a parameter's elements, regardless of the topology it was saved with."""

import bisect
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from artefacts.manifest import DamagedError, Manifest
from artefacts.training_folder import checkpoint_name
from training.checkpoint import tensor_file
from training.checkpoint.snapshot import BUFFER, MASTER, RANDOM

_FILES = "rank-*.safetensors"
#: Format version, recorded in every checkpoint's manifest. It is incremented when older code would misread the files.
FORMAT = 4


def fault_of_format(saved: Manifest) -> str:
    """Explain why a checkpoint's format cannot be read. Returns "" if it can."""
    saved_format = saved.details.get("format")
    if saved_format == FORMAT:
        return ""
    return f"saved in format {saved_format} by another version of Millrace, this one reads {FORMAT}"


def partial_folder_name(step: int) -> str:
    """Return the name of the folder for a checkpoint that is still being written."""
    return f".{checkpoint_name(step)}.partial"


def rank_file(rank: int) -> str:
    """Return the name of the file that a rank writes."""
    return f"rank-{rank:05d}.safetensors"


@dataclass(frozen=True, order=True)
class _Stored:
    """A range of consecutive elements of a parameter.

    The range begins at element ``start``, and is stored at ``offset`` in the NUMBER.STATE tensors of a file.
    """

    start: int
    numel: int
    file: str
    number: int
    offset: int


@dataclass
class Parameter:
    """A parameter in a checkpoint.

    Attributes:
        shape: the parameter's shape over all expert-parallel ranks.
        states: names of the per-element values: ``master`` (the fp32 weights) and the optimizer's states.
        scalars: values that the optimizer keeps once per parameter, such as its step.
    """

    shape: tuple[int, ...]
    states: list[str]
    scalars: dict[str, float]
    _stored: list[_Stored] = field(default_factory=list)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Contents:
    """The tensors of one checkpoint. Files are memory-mapped, so only tensors that are read take memory."""

    def __init__(self, folder: Path) -> None:
        """Read the tables of slices from all files.

        Raises:
            DamagedError: some of a parameter's elements are missing from the files.
        """
        self.folder = folder
        self.parameters: dict[str, Parameter] = {}
        self._open: dict[str, Any] = {}
        for path in sorted(folder.glob(_FILES)):
            self._add(path.name, json.loads(tensor_file.read_metadata(path)["partitions"]))
        for name, parameter in self.parameters.items():
            parameter._stored.sort()
            if sum(stored.numel for stored in parameter._stored) != parameter.numel:
                raise DamagedError(f"{folder}: {name} is incomplete", "use another checkpoint")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle. It contains no open files, because each process must open the files itself."""
        return {**vars(self), "_open": {}}

    def _add(self, file: str, table: list[dict[str, Any]]) -> None:
        for number, partition in enumerate(table):
            for name, shape, start, numel, offset in partition["slices"]:
                known = self.parameters.get(name)
                if known is None:
                    known = Parameter(tuple(shape), partition["states"], partition["scalars"])
                    self.parameters[name] = known
                known._stored.append(_Stored(start, numel, file, number, offset))

    def read(self, name: str, state: str = MASTER, start: int = 0, numel: int | None = None) -> torch.Tensor:
        """Read consecutive elements of one of a parameter's states, as a 1-D tensor.

        Args:
            name: the parameter's name.
            state: one of the parameter's ``states``; by default the fp32 weights.
            start: index of the first element in the flattened parameter.
            numel: number of elements; None reads to the end.
        """
        parameter = self.parameters[name]
        end = parameter.numel if numel is None else start + numel
        first = bisect.bisect_right(parameter._stored, start, key=lambda stored: stored.start) - 1
        pieces = []
        for stored in parameter._stored[first:]:
            if stored.start >= end:
                break
            low, high = max(start, stored.start), min(end, stored.start + stored.numel)
            begin = stored.offset + low - stored.start
            pieces.append(self._file(stored.file).get_slice(f"{stored.number}.{state}")[begin : begin + high - low])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def buffers(self) -> dict[str, torch.Tensor]:
        """Return the module's buffers, by name."""
        return self._named(rank_file(0), BUFFER)

    def random_states(self, rank: int) -> dict[str, torch.Tensor]:
        """Return a rank's torch RNG states: ``cpu``, and ``cuda`` or ``mps`` if the rank had a GPU."""
        return self._named(rank_file(rank), RANDOM)

    def _named(self, file: str, prefix: str) -> dict[str, torch.Tensor]:
        opened = self._file(file)
        return {n.removeprefix(prefix): opened.get_tensor(n) for n in opened.keys() if n.startswith(prefix)}  # noqa: SIM118

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]
