"""Two-way name tables between a model's weights in memory and a format on disk.

A table lists every name it can carry, with ``{}`` for a number. A stack, in memory one tensor of all experts, is
several tensors on disk.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from configs.errors import RequestError


@dataclass(frozen=True)
class Stack:
    """A tensor of all experts, [E, ...], whose rows on disk are tensors of their own.

    Attributes:
        name: in memory, with ``{}`` for the layer.
        parts: on disk, with ``{}`` for the layer and the expert; they divide an expert's first dimension evenly.
    """

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a tensor on disk belongs in memory.

    Attributes:
        name: of the tensor in memory.
        expert: its row of a stack; None: the whole tensor.
        part, parts: which of how many equal parts of that row.
    """

    name: str
    expert: int | None = None
    part: int = 0
    parts: int = 1

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The view of the tensor in memory that this place is.

        Raises:
            IndexError: it has no such row.
        """
        return tensor if self.expert is None else tensor[self.expert].chunk(self.parts, dim=0)[self.part]


class NameTable:
    """Names in memory and on disk."""

    def __init__(self, same: Sequence[str], stacks: Sequence[Stack], copies: dict[str, str], what: str) -> None:
        """Make a table.

        Args:
            same: names that are the same on both sides.
            stacks: tensors that are several on disk.
            copies: names on disk of what is in memory under another name, which is written there too.
            what: the format, for messages.
        """
        self._same = [_pattern(name) for name in same]
        self._stacks = [(_pattern(stack.name), stack) for stack in stacks]
        self._parts = [(_pattern(part), stack, number) for stack in stacks for number, part in enumerate(stack.parts)]
        self._copies = [(_pattern(name), name, original) for name, original in copies.items()]
        self._what = what

    def knows(self, name: str) -> bool:
        """Whether a tensor in memory has its place on disk."""
        return any(pattern.fullmatch(name) for pattern in [*self._same, *(pattern for pattern, _ in self._stacks)])

    def in_memory(self, name: str) -> Place | None:
        """Where a tensor on disk belongs; None: it is a copy of one that has its place.

        Raises:
            RequestError: the table does not know it.
        """
        if any(pattern.fullmatch(name) for pattern in self._same):
            return Place(name)
        for pattern, stack, number in self._parts:
            if match := pattern.fullmatch(name):
                return Place(stack.name.replace("{}", match[1]), int(match[2]), number, len(stack.parts))
        if any(pattern.fullmatch(name) for pattern, _, _ in self._copies):
            return None
        raise RequestError(f"{self._what} has no tensor named {name}: these weights are of another kind of model")

    def on_disk(self, name: str, experts: int) -> list[tuple[str, Place]]:
        """What a tensor in memory is called on disk, and which part of it each name is; ``experts``: rows of a stack.

        Raises:
            RequestError: the format cannot carry it.
        """
        for pattern, stack in self._stacks:
            if match := pattern.fullmatch(name):
                return [
                    (part.format(match[1], expert), Place(name, expert, number, len(stack.parts)))
                    for expert in range(experts)
                    for number, part in enumerate(stack.parts)
                ]
        if any(pattern.fullmatch(name) for pattern in self._same):
            return [(name, Place(name))]
        raise RequestError(f"{self._what} has no place for {name}: it cannot be exported to that")

    def copies_of(self, name: str, layers: Sequence[int]) -> list[str]:
        """Further names on disk of a tensor in memory, one for each of the layers that have a copy."""
        return [copy.format(layer) for _, copy, original in self._copies if original == name for layer in layers]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))
