"""Ranks: joining the process group that the launcher made room for, and the few collectives the loop needs."""

import datetime
import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from configs.errors import RequestError

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


def join(timeout_seconds: int = 1800) -> Ranks:
    """Join the process group: gloo on CPU, NCCL on GPUs. Alone, without a launcher, a group of one.

    Raises:
        RequestError: GPUs were asked for and there is none, or there are fewer than processes on this node.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    rank, size, local_rank = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    if os.environ.get("DS_ACCELERATOR") == "cuda" and not cuda:
        raise RequestError("launch.device=cuda, and torch sees no GPU here: set launch.device=auto or cpu")
    if cuda and int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise RequestError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes on a node of {torch.cuda.device_count()} GPUs: lower "
            "launch.processes, or set launch.device=cpu"
        )
    if cuda:
        torch.cuda.set_device(local_rank)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    store = None
    if "MASTER_ADDR" not in os.environ:
        # DeepSpeed reads these when it finds the group; nobody else joins a group of one.
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", "0"
        store = dist.HashStore()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout_seconds),
    )
    return Ranks(rank, size, local_rank, device)


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


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
