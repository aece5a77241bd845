"""Joining the process group that the launcher made room for."""

import datetime
import os

import torch
import torch.distributed as dist

from artefacts.errors import RequestError, RunError
from training.distributed.device import choose
from training.distributed.health_check import probe
from training.distributed.ranks import Ranks


def join(
    wait_seconds: int = 600, probe_seconds: int = 0, collective_seconds: int = 1800, device: str = "auto"
) -> Ranks:
    """Join the process group: NCCL on GPUs, else gloo. Alone, without a launcher, a group of one.

    Args:
        wait_seconds: for all ranks to be there.
        probe_seconds: for a first exchange between them (:mod:`training.distributed.health_check`); 0: none.
        collective_seconds: for each collective afterwards.
        device: ``launch.device``.

    Raises:
        RequestError: GPUs were asked for and there is none, or there are fewer than processes on this node.
        RunError: ranks are missing; with their numbers.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    # DeepSpeed's launcher has another name for it.
    local_size = os.environ.get("LOCAL_SIZE", os.environ["WORLD_SIZE"])
    os.environ.setdefault("LOCAL_WORLD_SIZE", local_size)
    rank, size, local_rank = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = _device(device, local_rank)
    store = _meet(rank, size, wait_seconds)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=collective_seconds),
    )
    ranks = Ranks(rank, size, local_rank, chosen)
    probe(ranks, store, probe_seconds)
    return ranks


def _device(asked: str, local_rank: int) -> torch.device:
    chosen = choose(asked, processes=int(os.environ["LOCAL_WORLD_SIZE"]))
    if chosen.type != "cuda":
        return chosen
    if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise RequestError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes on a node of {torch.cuda.device_count()} GPUs: lower "
            "launch.processes, or set launch.device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _meet(rank: int, size: int, seconds: int) -> dist.Store:
    """The store that all ranks have come to: torchrun's, or rank 0's own."""
    if "MASTER_ADDR" not in os.environ:
        # DeepSpeed reads these when it finds the group; nobody else joins a group of one.
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", "0"
        return dist.HashStore()
    limit = datetime.timedelta(seconds=seconds)
    own = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            size,
            is_master=own and rank == 0,
            timeout=limit,
            wait_for_workers=False,
        )
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunError(
            f"rank {rank} finds nobody at {where} within {seconds} s (launch.join_seconds): {error}"
        ) from None
    store.set(f"here/{rank}", "")
    keys = [f"here/{other}" for other in range(size)]
    try:
        store.wait(keys, limit)
    except dist.DistStoreError:
        missing = [str(other) for other, key in enumerate(keys) if not store.check([key])]
        raise RunError(
            f"of {size} ranks these did not join within {seconds} s (launch.join_seconds): {', '.join(missing)}"
        ) from None
    return store
