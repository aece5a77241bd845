"""This process's position among all ranks, and the collectives that training needs."""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's position among all ranks.

    Attributes:
        rank: index of this process over all nodes.
        size: number of processes over all nodes.
        local_rank: index of this process on its node, which is also the index of its GPU.
        device: the device on which this process computes.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def destroy_process_group() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype for sums: fp64, or fp32 on MPS, which does not support fp64."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_over_ranks(values: torch.Tensor, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    """Sum a tensor over all ranks in place, and return it."""
    # A single rank has nothing to reduce, but the call would still take 0.2 ms.
    if dist.get_world_size(group) > 1:
        dist.all_reduce(values, group=group)
    return values


def broadcast_value(value: T) -> T:
    """Return rank 0's Python value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
