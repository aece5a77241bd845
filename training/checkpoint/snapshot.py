"""A rank's share of the state, copied to host memory: all that a step waits for when a checkpoint is written."""

import json
from typing import Any

import torch

from training.engine.partitions import Partition, Partitions

#: Key of the fp32 weights beside the optimiser's own keys.
MASTER = "master"
BUFFER = "buffer."
RANDOM = "random."


class Snapshot:
    """Host memory for a rank's share, filled anew for each checkpoint; on a GPU's host it is pinned.

    Of a parameter that several ranks hold whole each copies its own part, so that all ranks together write everything
    once.
    """

    def __init__(self, partitions: Partitions, device: torch.device, first: bool) -> None:
        """``first``: this rank also takes the buffers, which are the same on all."""
        self._partitions, self._device, self._first = partitions, device, first
        self._memory: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def take(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Copy; returns the tensors by name, valid until the next call, and the table of what is where in them."""
        tensors: dict[str, torch.Tensor] = {}
        table = []
        here = self._partitions
        kept = [*((p, True) for p in here.trained), *((p, False) for p in here.frozen)]
        for number, (partition, trained) in enumerate(kept):
            with here.present(partition):
                # Not before: of what lies on NVMe not even the size is here.
                begin, end = _share(partition)
                state = here.state(partition) if trained else {}
                elementwise = {MASTER: partition.master, **_elementwise(partition, state)}
                for key, tensor in elementwise.items():
                    name = f"{number}.{key}"
                    tensors[name] = self._copy(name, tensor.detach().reshape(-1)[begin:end])
            scalars = {
                key: float(value) for key, value in state.items() if key not in elementwise and value is not None
            }
            table.append({"states": list(elementwise), "scalars": scalars, "stretches": [*_cut(partition, begin, end)]})
        if self._first:
            for name, buffer in _persistent_buffers(here.engine.module).items():
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
    found = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key: value for key, value in found.items() if value.ndim > 0 and value.numel() == size}


def _share(partition: Partition) -> tuple[int, int]:
    which, of = partition.replica
    numel = partition.master.numel()
    return numel * which // of, numel * (which + 1) // of


def _cut(partition: Partition, begin: int, end: int) -> list[tuple[str, tuple[int, ...], int, int, int]]:
    """The stretches between two elements of a partition, counted from the first of them."""
    found = []
    for stretch in partition.stretches:
        low, high = max(stretch.offset, begin), min(stretch.offset + stretch.numel, end)
        if low < high:
            start = stretch.start + low - stretch.offset
            found.append((stretch.name, stretch.shape, start, high - low, low - begin))
    return found


def _persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found
