"""Ranks, and the few collectives the loop needs."""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank: number of this process over all nodes.
        size: processes over all nodes.
        local_rank: number of this process on its node; its GPU.
        device: where this process computes.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def widest(device: torch.device) -> torch.dtype:
    """What sums are kept in: fp64, which MPS has not."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_over_ranks(values: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """The sum of a tensor over all ranks, in place and returned."""
    # A group of one has nothing to wait for, and the call alone takes a fifth of a millisecond.
    if dist.get_world_size(group) > 1:
        dist.all_reduce(values, group=group)
    return values


def broadcast_value(value: T) -> T:
    """Rank 0's Python value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
