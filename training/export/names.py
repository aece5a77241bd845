"""Two-way tables that map the in-memory names of a model's weights to and from their on-disk names.

A table lists every name in the format, with ``{}`` for a number. A stack is a single tensor of all experts in memory
but several tensors on disk.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from artefacts.errors import RequestError


@dataclass(frozen=True)
class Stack:
    """A tensor in which all experts are stacked, [E, ...]. On disk, each expert has one or more separate tensors.

    Attributes:
        name: name in memory, with ``{}`` for the layer.
        parts: names on disk, with ``{}`` for the layer and the expert. The parts split an expert's first dimension
            evenly.
    """

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """The location in memory that corresponds to a tensor on disk.

    Attributes:
        name: name of the tensor in memory.
        expert: row of a stack, or None for the complete tensor.
        part, parts: index of the part within that row, and the number of equal parts.
        transposed: whether the matrix is transposed on disk.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1
    transposed: bool = False

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the view of the in-memory tensor at this place.

        Raises:
            IndexError: the tensor has no such row.
        """
        if self.expert is not None:
            tensor = tensor[self.expert].chunk(self.parts, dim=0)[self.part]
        return tensor.t() if self.transposed else tensor


class NameTable:
    """A two-way mapping between a format's weight names in memory and on disk."""

    def __init__(
        self,
        what: str,
        same: Sequence[str] = (),
        *,
        renamed: Mapping[str, str] | None = None,
        transposed: Collection[str] = (),
        stacks: Sequence[Stack] = (),
        copies: Mapping[str, str] | None = None,
        zeros: Sequence[str] = (),
        ignored: Sequence[str] = (),
        prefix: str = "",
    ) -> None:
        """Create a table.

        Args:
            what: name of the format, for messages.
            same: names that are the same in memory and on disk.
            renamed: names in memory -> names on disk.
            transposed: names (in memory) of matrices that are transposed on disk.
            stacks: tensors that are split into several on disk.
            copies: names of copies on disk -> names of the originals in memory.
            zeros: names (in memory) of biases that a model may lack. They are then stored as zeros on disk.
            ignored: names (on disk) of tensors that are not weights.
            prefix: prefix of names on disk that files may omit.
        """
        names = {**dict(zip(same, same, strict=True)), **(renamed or {})}
        self._names = [
            (_pattern(name), name, _pattern(on_disk), on_disk, name in transposed) for name, on_disk in names.items()
        ]
        self._stacks = [(_pattern(stack.name), stack) for stack in stacks]
        self._parts = [(_pattern(part), stack, number) for stack in stacks for number, part in enumerate(stack.parts)]
        self._copies = [(_pattern(name), name, original) for name, original in (copies or {}).items()]
        self._zeros, self._ignored = _patterns(zeros), _patterns(ignored)
        self._what, self._prefix = what, prefix

    def knows(self, name: str) -> bool:
        """Return whether the table has an on-disk name for an in-memory tensor."""
        patterns = [*(entry[0] for entry in self._names), *(pattern for pattern, _ in self._stacks)]
        return _matches(patterns, name)

    def may_lack(self, name: str) -> bool:
        """Return whether a model may lack this tensor. Its on-disk tensor is then all zeros."""
        return _matches(self._zeros, name)

    def reads(self, name: str) -> bool:
        """Return whether the table has an in-memory place for an on-disk tensor."""
        return any(pattern.fullmatch(name) for pattern, _, _ in self._parts) or any(
            pattern.fullmatch(name) for _, _, pattern, _, _ in self._names
        )

    def in_memory(self, name: str) -> Place | None:
        """Return an on-disk tensor's place in memory, or None if it is a copy of another tensor or not a weight.

        Raises:
            RequestError: the table does not contain the name.
        """
        for full_name in dict.fromkeys((name, self._prefix + name)):
            for _, ours, pattern, _, transposed in self._names:
                if match := pattern.fullmatch(full_name):
                    return Place(ours.format(*match.groups()), transposed=transposed)
            for pattern, stack, number in self._parts:
                if match := pattern.fullmatch(full_name):
                    return Place(stack.name.format(match[1]), int(match[2]), number, len(stack.parts))
            if _matches([*(copy for copy, _, _ in self._copies), *self._ignored], full_name):
                return None
        raise RequestError(
            f"{self._what} has no tensor named {name}: these weights belong to a different kind of model"
        )

    def on_disk(self, name: str, experts: int) -> list[tuple[str, Place]]:
        """Return an in-memory tensor's names on disk, each with its place in the tensor.

        ``experts`` is the number of rows if the tensor is a stack.

        Raises:
            RequestError: the format does not have the tensor.
        """
        for pattern, stack in self._stacks:
            if match := pattern.fullmatch(name):
                return [
                    (part.format(match[1], expert), Place(name, expert, number, len(stack.parts)))
                    for expert in range(experts)
                    for number, part in enumerate(stack.parts)
                ]
        for pattern, _, _, on_disk, transposed in self._names:
            if match := pattern.fullmatch(name):
                return [(on_disk.format(*match.groups()), Place(name, transposed=transposed))]
        raise RequestError(f"{self._what} has no name for {name}: it cannot be exported")

    def copies_of(self, name: str, layers: Sequence[int]) -> list[str]:
        """Return the on-disk names of an in-memory tensor's copies in these layers."""
        return [copy.format(layer) for _, copy, original in self._copies if original == name for layer in layers]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))


def _patterns(names: Iterable[str]) -> list[re.Pattern[str]]:
    return [_pattern(name) for name in names]


def _matches(patterns: Iterable[re.Pattern[str]], name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)
