"""Copies a rank's shard of the training state to host memory. Saving blocks training only for this copy."""

import json
from typing import Any

import torch

from training.engine.partitions import Partition, Partitions

#: Key of the fp32 weights, alongside the optimizer's own keys.
MASTER = "master"
BUFFER = "buffer."
RANDOM = "random."


class Snapshot:
    """Host memory for a rank's shard of the training state, reused for every checkpoint. It is pinned on CUDA.

    If several ranks hold the same parameter, each copies a different part of it, so that every element is written once.
    """

    def __init__(self, partitions: Partitions, device: torch.device, first: bool) -> None:
        """Initialize the snapshot. Host memory is allocated when it is first needed.

        Args:
            partitions: the engine's partitions.
            device: this rank's device.
            first: whether this rank also copies the module's buffers, which are the same on all ranks.
        """
        self._partitions, self._device, self._first = partitions, device, first
        self._memory: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def take(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Copy the state to host memory.

        Returns:
            The tensors by name, valid until the next call, and file metadata with a table of the slices that the
            tensors contain.
        """
        tensors: dict[str, torch.Tensor] = {}
        table = []
        local = self._partitions
        kept = [*((p, True) for p in local.trained), *((p, False) for p in local.frozen)]
        for number, (partition, trained) in enumerate(kept):
            with local.in_memory(partition):
                # Inside the context, because not even a partition's size is known while it is on NVMe.
                begin, end = _share(partition)
                state = local.state(partition) if trained else {}
                elementwise = {MASTER: partition.master, **_elementwise(partition, state)}
                for key, tensor in elementwise.items():
                    name = f"{number}.{key}"
                    tensors[name] = self._copy(name, tensor.detach().reshape(-1)[begin:end])
            scalars = {
                key: float(value) for key, value in state.items() if key not in elementwise and value is not None
            }
            table.append({"states": list(elementwise), "scalars": scalars, "slices": [*_cut(partition, begin, end)]})
        if self._first:
            for name, buffer in _persistent_buffers(local.engine.module).items():
                tensors[BUFFER + name] = self._copy(BUFFER + name, buffer.detach())
        tensors[RANDOM + "cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors[RANDOM + "cuda"] = torch.cuda.get_rng_state(self._device)
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            tensors[RANDOM + "mps"] = torch.mps.get_rng_state()
            torch.mps.synchronize()
        return tensors, {"partitions": json.dumps(table, separators=(",", ":"))}

    def _copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        kept = self._memory.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            pinned = self._device.type == "cuda"
            kept = self._memory[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return kept.copy_(tensor, non_blocking=True)


def _elementwise(partition: Partition, state: dict[str, Any]) -> dict[str, torch.Tensor]:
    size = partition.master.numel()
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key: value for key, value in tensors.items() if value.ndim > 0 and value.numel() == size}


def _share(partition: Partition) -> tuple[int, int]:
    replica, replicas = partition.replica
    numel = partition.master.numel()
    return numel * replica // replicas, numel * (replica + 1) // replicas


def _cut(partition: Partition, begin: int, end: int) -> list[tuple[str, tuple[int, ...], int, int, int]]:
    """Return the slices in the range [``begin``, ``end``) of a partition, with offsets relative to ``begin``."""
    slices = []
    for piece in partition.slices:
        low, high = max(piece.offset, begin), min(piece.offset + piece.numel, end)
        if low < high:
            start = piece.start + low - piece.offset
            slices.append((piece.name, piece.shape, start, high - low, low - begin))
    return slices


def _persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    buffers = {}
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                buffers[f"{prefix}.{name}" if prefix else name] = buffer
    return buffers
