"""Joins the process group."""

import datetime
import os

import torch
import torch.distributed as dist

from artefacts.errors import RequestError, RunError
from training.distributed.device import choose_device
from training.distributed.health_check import probe
from training.distributed.ranks import Ranks


def join(
    wait_seconds: int = 600, probe_seconds: int = 0, collective_seconds: int = 1800, device: str = "auto"
) -> Ranks:
    """Join the process group, with NCCL on GPUs and gloo elsewhere. Without a launcher, this process is the only rank.

    Args:
        wait_seconds: time limit for all ranks to join.
        probe_seconds: time limit for the network check (:mod:`training.distributed.health_check`); 0 skips it.
        collective_seconds: time limit for every later collective.
        device: ``launch.device``.

    Raises:
        RequestError: the requested device is not available, or this node has fewer GPUs than processes.
        RunError: the rendezvous cannot be reached, or ranks are missing. The message names them.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    # DeepSpeed's launcher sets LOCAL_SIZE instead.
    local_size = os.environ.get("LOCAL_SIZE", os.environ["WORLD_SIZE"])
    os.environ.setdefault("LOCAL_WORLD_SIZE", local_size)
    rank, size, local_rank = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    local_device = _device(device, local_rank)
    store = _rendezvous(rank, size, wait_seconds)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if local_device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=collective_seconds),
    )
    ranks = Ranks(rank, size, local_rank, local_device)
    probe(ranks, store, probe_seconds)
    return ranks


def _device(wanted: str, local_rank: int) -> torch.device:
    device = choose_device(wanted, processes=int(os.environ["LOCAL_WORLD_SIZE"]))
    if device.type != "cuda":
        return device
    if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
        raise RequestError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes on a node of {torch.cuda.device_count()} GPUs: lower "
            "launch.processes, or set launch.device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _rendezvous(rank: int, size: int, seconds: int) -> dist.Store:
    """Connect to torchrun's store, or to a store hosted by rank 0. Returns the store once all ranks have joined."""
    if "MASTER_ADDR" not in os.environ:
        # DeepSpeed reads these if a process group exists. A single rank does not need a real address.
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", "0"
        return dist.HashStore()
    limit = datetime.timedelta(seconds=seconds)
    hosted_here = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            size,
            is_master=hosted_here and rank == 0,
            timeout=limit,
            wait_for_workers=False,
        )
    except dist.DistError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunError(
            f"rank {rank} could not connect to {address} within {seconds} s (launch.join_seconds): {error}"
        ) from None
    store.set(f"joined/{rank}", "")
    keys = [f"joined/{other}" for other in range(size)]
    try:
        store.wait(keys, limit)
    except dist.DistStoreError:
        missing = [str(other) for other, key in enumerate(keys) if not store.check([key])]
        raise RunError(
            f"{len(missing)} of {size} ranks did not join within {seconds} s (launch.join_seconds); missing: "
            f"{', '.join(missing)}"
        ) from None
    return store
