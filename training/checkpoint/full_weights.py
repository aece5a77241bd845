"""Reads full weights from a checkpoint, without an engine.

The checkpoint may have been saved with any number of ranks, expert-parallel size or ZeRO stage. Tensors are named as in
Hugging Face's files (``...mlp.experts.{j}.gate_proj.weight``), so the weights of different experts are separate
tensors. Files are memory-mapped, so only the current tensor takes memory.

DeepSpeed's own ``zero_to_fp32`` fails on AutoEP's layers, whose parameters are named ``router.gate`` and ``w1/w2/w3``.
"""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from artefacts import command_hints, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from training.adapter_names import EXPERT_ADAPTERS, MAGNITUDE, A, B, is_adapter
from training.checkpoint.index import Contents, fault_of_format

#: Maps AutoEP's stacked expert weights to the projections they contain.
_STACKS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_STACK = re.compile(r"(.*\.experts)\.(w[123])$")


def require_checkpoint(folder: Path, target: str) -> Manifest:
    """Verify a checkpoint's files and return its manifest.

    Args:
        folder: a ``step-NNNNNNNN`` folder.
        target: the make target that creates such a checkpoint, for the error message.

    Raises:
        RequestError: there is no checkpoint, it is damaged, or it is in another format.
    """
    saved = manifest.require_sound(folder, target)
    if fault := fault_of_format(saved):
        raise RequestError(
            f"{folder}: {fault}: use that version, or move it away and run `{command_hints.make(target)}`"
        )
    return saved


def read_weights(folder: Path, merges: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over a checkpoint's parameters and buffers, one at a time.

    Args:
        folder: a ``step-NNNNNNNN`` folder with its manifest.
        merges: returns whether to merge the adapter (``finetune.lora``) of the parameter with this name in the
            checkpoint. By default, all adapters are merged.

    Yields:
        (name, tensor) for everything but adapters, named as in Hugging Face's files. Router biases and weights are in
        fp32, except for weights that were frozen in a run with a lower precision.

    Raises:
        RequestError: the folder is not a checkpoint.
    """
    saved = manifest.require(folder, "pretrain")
    contents = Contents(folder)
    adapters = _Adapters(contents, lora_settings(saved))
    for name, parameter in contents.parameters.items():
        if is_adapter(name):
            continue
        match = _STACK.match(name)
        if not match:
            weight = contents.read(name).view(parameter.shape)
            yield _released_name(name), adapters.merged(name, weight) if merges(name) else weight
            continue
        experts, *shape = parameter.shape
        size = math.prod(shape)
        for expert in range(experts):
            weight = contents.read(name, start=expert * size, numel=size).view(shape)
            weight = adapters.merged_expert(match[1], match[2], expert, weight) if merges(name) else weight
            yield f"{match[1]}.{expert}.{_STACKS[match[2]]}.weight", weight
    for name, buffer in contents.buffers().items():
        yield _released_name(name), buffer


def lora_settings(saved: Manifest) -> dict[str, Any] | None:
    """Return the ``finetune.lora`` section that a checkpoint's adapters were trained with, or None without adapters."""
    settings: dict[str, Any] | None = saved.details.get("run", {}).get("lora")
    return settings


def read_adapters(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over the parameters of a checkpoint's adapters in fp32, named as in :mod:`training.adapter_names`."""
    contents = Contents(folder)
    for name, parameter in contents.parameters.items():
        if is_adapter(name):
            yield name, contents.read(name).view(parameter.shape)


class _Adapters:
    """Merges a checkpoint's adapters into its weights, in fp32. Without adapters, weights stay as they are."""

    def __init__(self, contents: Contents, settings: dict[str, Any] | None) -> None:
        self._contents = contents
        self._scale = settings["alpha"] / settings["rank"] if settings else 1.0

    def merged(self, name: str, weight_OI: torch.Tensor) -> torch.Tensor:
        """Return a weight with its adapter, if it has one."""
        # Outside AutoEP, the routed experts' stacks have their names in memory.
        layer = name.removesuffix(".weight").replace(".mlp.experts.", f".{EXPERT_ADAPTERS}.")
        if f"{layer}.{A}" not in self._contents.parameters:
            return weight_OI
        a, b = (self._read(f"{layer}.{factor}") for factor in (A, B))
        merged = weight_OI.float() + self._scale * (b @ a)
        if f"{layer}.{MAGNITUDE}" in self._contents.parameters:
            norms = torch.linalg.vector_norm(merged, dim=1)
            merged *= (self._read(f"{layer}.{MAGNITUDE}") / norms)[:, None]
        return merged

    def merged_expert(self, experts: str, part: str, expert: int, weight_OI: torch.Tensor) -> torch.Tensor:
        """Return one expert's weight ``w1`` (gate), ``w3`` (up) or ``w2`` (down) with its adapter, if it has one."""
        stack = "down_proj" if part == "w2" else "gate_up_proj"
        adapter = f"{experts.removesuffix('.mlp.experts')}.{EXPERT_ADAPTERS}.{stack}"
        if f"{adapter}.{A}" not in self._contents.parameters:
            return weight_OI
        a, b = (self._read(f"{adapter}.{factor}", expert) for factor in (A, B))
        if part != "w2":
            b = b.chunk(2)[0 if part == "w1" else 1]
        return torch.addmm(weight_OI.float(), b, a, alpha=self._scale)

    def _read(self, name: str, expert: int | None = None) -> torch.Tensor:
        shape = self._contents.parameters[name].shape
        if expert is None:
            return self._contents.read(name).view(shape).float()
        size = math.prod(shape[1:])
        return self._contents.read(name, start=expert * size, numel=size).view(shape[1:]).float()


def _released_name(name: str) -> str:
    return name.replace(".mlp.router.gate.", ".mlp.gate.").replace(".mlp.router.", ".mlp.gate.")
