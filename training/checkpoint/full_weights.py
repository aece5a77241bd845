"""Reads full weights from a checkpoint, without an engine.

The checkpoint may have been saved with any number of ranks, expert-parallel size or ZeRO stage. Tensors are named as in
Hugging Face's files (``...mlp.experts.{j}.gate_proj.weight``), so the weights of different experts are separate
tensors. Files are memory-mapped, so only the current tensor takes memory.

DeepSpeed's own ``zero_to_fp32`` fails on AutoEP's layers, whose parameters are named ``router.gate`` and ``w1/w2/w3``.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from artefacts import command_hints, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
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


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over a checkpoint's parameters and buffers, one at a time.

    Args:
        folder: a ``step-NNNNNNNN`` folder with its manifest.

    Yields:
        (name, tensor), named as in Hugging Face's files. Weights and router biases are in fp32.

    Raises:
        RequestError: the folder is not a checkpoint.
    """
    manifest.require(folder, "pretrain")
    contents = Contents(folder)
    for name, parameter in contents.parameters.items():
        match = _STACK.match(name)
        if not match:
            yield _released_name(name), contents.read(name).view(parameter.shape)
            continue
        experts, *shape = parameter.shape
        size = math.prod(shape)
        for expert in range(experts):
            weight = contents.read(name, start=expert * size, numel=size).view(shape)
            yield f"{match[1]}.{expert}.{_STACKS[match[2]]}.weight", weight
    for name, buffer in contents.buffers().items():
        yield _released_name(name), buffer


def _released_name(name: str) -> str:
    return name.replace(".mlp.router.gate.", ".mlp.gate.").replace(".mlp.router.", ".mlp.gate.")
