"""Where DeepSpeed keeps a rank's share of the fp32 master weights and of the optimiser's state, whatever the stage.

The optimiser steps on flat fp32 tensors, here *partitions*. A partition is made of *stretches*: runs of consecutive
elements of a parameter. A parameter of routed experts counts as one over all ranks of its expert-parallel group, so
that a stretch has the same place in it whatever that group's size: checkpoints go by these places.

What is read here of DeepSpeed 0.19 is what its own universal checkpoints are loaded through: ``_hp_mapping`` (stages 1
and 2), ``fp16_groups`` beside ``fp32_partitioned_groups_flat`` (stage 3). At stage 0, which is fp32 alone, the
parameters are the master weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

#: What a loss scaler goes by; the others of its attributes are its settings.
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Stretch:
    """Consecutive elements of a parameter in a partition.

    Attributes:
        name: of the parameter in the engine's module.
        shape: of the parameter over all expert-parallel ranks.
        start: its first element, counted in the flattened parameter over all expert-parallel ranks.
        numel: elements.
        offset: of the first element in the partition.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    offset: int


@dataclass(frozen=True, eq=False)
class Partition:
    """A flat tensor that this rank's optimiser steps on; ``stretches`` are in order of ``offset``.

    Attributes:
        master: the fp32 weights, of which the optimiser's state is kept under; any shape.
        stretches: what it is made of; what lies between and after them is padding.
        replica: (which, of how many) ranks that hold the same; (0, 1): this one alone.
        group: the ranks over which its parameters are spread; None: they are whole here.
        swapped: position among DeepSpeed's sub-groups, where the state is swapped to NVMe.
    """

    master: torch.Tensor
    stretches: list[Stretch]
    replica: tuple[int, int] = (0, 1)
    group: dist.ProcessGroup | None = None
    swapped: int | None = None


@dataclass(frozen=True)
class Partitions:
    """All partitions of this rank and what brings them to the weights that the model computes with."""

    engine: Any
    trained: list[Partition]
    frozen: list[Partition] = field(default_factory=list)

    @property
    def _optimizer(self) -> Any:
        """DeepSpeed's wrapper, or at stage 0 in fp32 the optimiser itself."""
        return self.engine.optimizer

    def state(self, partition: Partition) -> dict[str, Any]:
        """The optimiser's state of a partition, by key; tensors as long as it are its elements', others are scalars."""
        kept: dict[str, Any] = self.engine.basic_optimizer.state[partition.master]
        return kept

    @contextmanager
    def present(self, partition: Partition, changed: bool = False) -> Iterator[None]:
        """Have a partition in memory that may lie on NVMe; ``changed``: write it back after."""
        if partition.swapped is None:
            yield
            return
        self._optimizer._optimizer_states_and_gradient_swap_in(partition.swapped)
        yield
        if changed:
            self._optimizer._optimizer_states_and_gradient_swap_out(partition.swapped)
        else:
            self._optimizer._release_swap_buffers(partition.swapped)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's shape over all expert-parallel ranks, by name; the same on every rank."""
        named = self.engine.module.named_parameters()
        return {name: _over_experts(p, tuple(getattr(p, "ds_shape", p.shape)))[0] for name, p in named}

    @torch.no_grad()
    def publish(self) -> None:
        """Round the master weights to those that the model computes with; collective."""
        optimizer = self._optimizer
        if self.engine.zero_optimization_partition_weights():
            optimizer._partition_all_parameters()
            for position, partition in enumerate(self.trained):
                with self.present(partition):
                    optimizer._reassign_or_swap_out_partitioned_parameters(position)
            # Small parameters are kept whole on every rank.
            optimizer.checkpoint_event_epilogue()
        elif hasattr(optimizer, "update_lp_params"):
            optimizer.update_lp_params()

    def scaler_state(self) -> dict[str, float]:
        """The loss scaler's state under fp16; empty where nothing is scaled."""
        scaler = self._scaler()
        if scaler is None:
            return {}
        return {key: getattr(scaler, key) for key in _SCALER_STATE if hasattr(scaler, key)}

    def restore_scaler(self, state: dict[str, float]) -> None:
        """Set what ``scaler_state`` gave."""
        scaler = self._scaler()
        for key, value in state.items() if scaler is not None else ():
            setattr(scaler, key, value)

    def _scaler(self) -> Any:
        return self._optimizer.loss_scaler if self.engine.fp16_enabled() else None


def partitions(engine: Any) -> Partitions:
    """The partitions of a DeepSpeed engine on this rank, in the order in which it steps on them."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if engine.zero_optimization_partition_weights():
        return _of_stage_3(engine, names)
    optimizer = engine.optimizer
    frozen = [_whole(name, p) for p, name in names.items() if not p.requires_grad]
    if engine.zero_optimization():
        groups = getattr(optimizer, "bit16_groups", None) or optimizer.bf16_groups
        flats = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
        trained = [
            Partition(flat, _mapped(group, names), group=ranks)
            for group, flat, ranks in zip(groups, flats, optimizer.real_dp_process_group, strict=True)
        ]
        return Partitions(engine, trained, frozen)
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    return Partitions(engine, [_whole(names[p], p) for p in ordered], frozen)


def _whole(name: str, parameter: nn.Parameter) -> Partition:
    """A parameter that every rank of its data-parallel group holds whole."""
    shape, before = _over_experts(parameter, tuple(parameter.shape))
    replicas = None
    if not getattr(parameter, "allreduce", True):
        replicas = _groups()._get_expert_data_parallel_group(getattr(parameter, "group_name"))  # noqa: B009 - AutoEP's
    replica = (dist.get_rank(replicas), dist.get_world_size(replicas))
    return Partition(parameter, [Stretch(name, shape, before, parameter.numel(), 0)], replica)


def _mapped(group: list[nn.Parameter], names: dict[nn.Parameter, str]) -> list[Stretch]:
    """Stages 1 and 2: the parameters of a group that have elements in this rank's partition."""
    stretches = []
    for parameter in group:
        fragment = parameter._hp_mapping  # type: ignore[attr-defined]
        if fragment is None:
            continue
        shape, before = _over_experts(parameter, tuple(parameter.shape))
        place, kept = fragment.lp_fragment_address, fragment.hp_fragment_address
        stretches.append(Stretch(names[parameter], shape, before + place.start, place.numel, kept.start))
    return sorted(stretches, key=lambda stretch: stretch.offset)


def _of_stage_3(engine: Any, names: dict[nn.Parameter, str]) -> Partitions:
    """Stage 3: each parameter cut into equal parts over its ranks, the last padded, one after another."""
    optimizer = engine.optimizer
    trained = []
    for position, (group, flat) in enumerate(
        zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    ):
        stretches, offset = [], 0
        for parameter in group:
            stretches += _part(optimizer, parameter, names[parameter], offset)
            offset += parameter.ds_tensor.ds_numel
        swapped = position if optimizer._swappable_optimizer_subgroup(position) else None
        ranks = optimizer._get_param_partition_group(group[0])
        trained.append(Partition(flat, stretches, group=ranks, swapped=swapped))
    frozen = [
        Partition(parameter.ds_tensor, _part(optimizer, parameter, name, 0))  # type: ignore[attr-defined]
        for parameter, name in names.items()
        if not parameter.requires_grad
    ]
    return Partitions(engine, trained, frozen)


def _part(optimizer: Any, parameter: Any, name: str, offset: int) -> list[Stretch]:
    """This rank's part of a parameter of stage 3, without its padding; none where it is all padding."""
    shape, before = _over_experts(parameter, tuple(parameter.ds_shape))
    start = parameter.ds_tensor.ds_numel * optimizer._get_param_partition_rank(parameter)
    numel = min(parameter.ds_tensor.ds_numel, parameter.ds_numel - start)
    return [Stretch(name, shape, before + start, numel, offset)] if numel > 0 else []


def _over_experts(parameter: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Shape over all expert-parallel ranks, and the elements on the ranks before this one."""
    if getattr(parameter, "allreduce", True):
        return shape, 0
    group = _groups()._get_expert_parallel_group(parameter.group_name)
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    numel = 1
    for length in shape:
        numel *= length
    return (shape[0] * size, *shape[1:]), rank * numel


def _groups() -> Any:
    from deepspeed.utils import groups

    return groups
