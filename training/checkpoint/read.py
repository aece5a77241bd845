"""Full weights out of a checkpoint of any number of ranks, expert-parallel size and ZeRO stage, without an engine.

Names are Hugging Face's on disk (``...mlp.experts.{j}.gate_proj.weight``), so a tensor is never larger than one
parameter of one expert. Files are memory-mapped: what is held is the tensor at hand. Stages 1 to 3 give the fp32
master weights; stage 0 gives what the model computes with, since there DeepSpeed keeps masters only under bf16.

DeepSpeed's own ``zero_to_fp32`` fails on AutoEP's layers, whose names are ``router.gate`` and ``w1/w2/w3``.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artefacts import manifest

#: AutoEP's stacks and the projections they are.
_STACKS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_STACK = re.compile(r"(.*\.experts)\.(w[123])$")


@dataclass(frozen=True)
class _Piece:
    """A stretch of a rank's flat fp32 partition."""

    flat: torch.Tensor
    start: int
    numel: int

    def read(self) -> torch.Tensor:
        return self.flat.narrow(0, self.start, self.numel)


#: (parameter, expert-parallel rank or None) -> its pieces in order.
_Index = dict[tuple[str, int | None], list[_Piece]]


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer of a checkpoint, one at a time.

    Args:
        folder: a ``step-NNNNNNNN`` folder with its manifest.

    Yields:
        (name, tensor): Hugging Face's on-disk name; fp32 for master weights and router biases.

    Raises:
        RequestError: the folder is no checkpoint.
    """
    topology = manifest.require(folder, "make pretrain").details["topology"]
    stage = int(topology["zero_stage"])
    if stage == 0:
        yield from _read_plain(folder)
        return
    ranks, expert_parallel = int(topology["ranks"]), int(topology["expert_parallel"])
    model = _load(folder, "mp_rank_00_model_states.pt" if stage < 3 else "zero_pp_rank_0_*_model_states.pt")
    shapes = {name: tuple(shape) for group in model["param_shapes"] for name, shape in group.items()}
    groups = [list(group) for group in model["param_shapes"]]
    index: _Index = {}
    for rank in range(ranks):
        state = _load(folder, f"*zero_pp_rank_{rank}_*_optim_states.pt")["optimizer_state_dict"]
        if stage < 3:
            _index_slices(index, state, rank % expert_parallel)
        else:
            _index_partitions(index, state, groups, shapes, ranks, expert_parallel, rank % expert_parallel)
    yield from _read_pieces(index, shapes, expert_parallel)
    for name in model["buffer_names"]:
        yield _released_name(name), model["module"][name]


def _read_plain(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Stage 0: every tensor is whole in the model file or in a file of its expert."""
    for name, tensor in _load(folder, "mp_rank_00_model_states.pt")["module"].items():
        yield _released_name(name), tensor
    for path in sorted(folder.glob("layer_*_expert_*_model_states.pt")):
        for name, tensor in torch.load(path, map_location="cpu", weights_only=False, mmap=True).items():
            stack, _, expert = name.rpartition(".")
            if match := _STACK.match(stack):
                yield f"{match[1]}.{expert}.{_STACKS[match[2]]}.weight", tensor


def _index_slices(index: _Index, state: dict[str, Any], expert_rank: int) -> None:
    """Stages 1 and 2: a rank's partition says by name which slice of which parameter it holds."""
    for flat, slices in zip(state["single_partition_of_fp32_groups"], state["param_slice_mappings"], strict=True):
        for name, address in slices.items():
            owner = expert_rank if _STACK.match(name) else None
            index.setdefault((name, owner), []).append(_Piece(flat, address.start, address.numel))


def _index_partitions(
    index: _Index,
    state: dict[str, Any],
    groups: list[list[str]],
    shapes: dict[str, tuple[int, ...]],
    ranks: int,
    expert_parallel: int,
    expert_rank: int,
) -> None:
    """Stage 3: each parameter is cut into equal parts over its ranks, the last padded, laid out in group order."""
    flats = iter(state["fp32_flat_groups"])
    flat, offset = next(flats), 0
    for name in (name for group in groups for name in group):
        expert = _STACK.match(name) is not None
        part = math.ceil(math.prod(shapes[name]) / (ranks // expert_parallel if expert else ranks))
        if offset + part > flat.numel():
            flat, offset = next(flats), 0
        index.setdefault((name, expert_rank if expert else None), []).append(_Piece(flat, offset, part))
        offset += part


def _read_pieces(
    index: _Index, shapes: dict[str, tuple[int, ...]], expert_parallel: int
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, shape in shapes.items():
        match = _STACK.match(name)
        if not match:
            yield _released_name(name), _join(index[name, None], shape)
            continue
        for rank in range(expert_parallel):
            for local, tensor in enumerate(_join(index[name, rank], shape)):
                yield f"{match[1]}.{rank * shape[0] + local}.{_STACKS[match[2]]}.weight", tensor


def _join(pieces: list[_Piece], shape: tuple[int, ...]) -> torch.Tensor:
    """The parameter from its pieces; padding past its end is cut off."""
    whole = pieces[0].read() if len(pieces) == 1 else torch.cat([piece.read() for piece in pieces])
    return whole[: math.prod(shape)].view(shape)


def _load(folder: Path, pattern: str) -> dict[str, Any]:
    (path,) = folder.glob(pattern)
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)


def _released_name(name: str) -> str:
    return name.replace(".mlp.router.gate.", ".mlp.gate.").replace(".mlp.router.", ".mlp.gate.")
