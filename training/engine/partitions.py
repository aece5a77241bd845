"""Locates a rank's shard of the fp32 master weights and optimizer state in DeepSpeed, at every ZeRO stage.

The optimizer updates flat fp32 tensors, called *partitions* here. A partition consists of *slices*: ranges of
consecutive elements of a parameter. An expert parameter's shards across an expert-parallel group count as one
parameter, so a slice's position does not depend on the group's size. Checkpoints store slices by these positions.

This module reads the attributes of DeepSpeed 0.19 that its own universal checkpoints use: ``_hp_mapping`` (stages 1 and
2), and ``fp16_groups`` with ``fp32_partitioned_groups_flat`` (stage 3). At stage 0 in fp32, the parameters themselves
are the master weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

#: Attributes of a loss scaler that change during training; its other attributes are settings.
_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class ParamSlice:
    """A range of consecutive elements of a parameter, stored in a partition.

    Attributes:
        name: the parameter's name in the engine's module.
        shape: the parameter's shape over all expert-parallel ranks.
        start: index of the slice's first element in the flattened parameter over all expert-parallel ranks.
        numel: number of elements.
        offset: index of the slice's first element in the partition.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    offset: int


@dataclass(frozen=True, eq=False)
class Partition:
    """A flat tensor that this rank's optimizer updates.

    Attributes:
        master: the fp32 weights, of any shape. The optimizer's state is keyed by this tensor.
        slices: the partition's slices, in order of ``offset``; all elements outside them are padding.
        replica: this rank's index among the ranks that hold the same partition, and the number of such ranks; (0, 1) if
            no other rank holds it.
        group: the ranks that the partition's parameters are sharded across; None if this rank holds them in full.
        swapped: index of the partition's DeepSpeed sub-group if its state is swapped to NVMe, else None.
    """

    master: torch.Tensor
    slices: list[ParamSlice]
    replica: tuple[int, int] = (0, 1)
    group: dist.ProcessGroup | None = None
    swapped: int | None = None


@dataclass(frozen=True)
class Partitions:
    """All of this rank's partitions, with methods to read or restore their state and update the model's weights."""

    engine: Any
    trained: list[Partition]
    frozen: list[Partition] = field(default_factory=list)

    @property
    def _optimizer(self) -> Any:
        """DeepSpeed's optimizer wrapper or, at stage 0 in fp32, the optimizer itself."""
        return self.engine.optimizer

    def state(self, partition: Partition) -> dict[str, Any]:
        """Return a partition's optimizer state by key. A value is a scalar or has as many elements as the partition."""
        state: dict[str, Any] = self.engine.basic_optimizer.state[partition.master]
        return state

    @contextmanager
    def in_memory(self, partition: Partition, modified: bool = False) -> Iterator[None]:
        """Swap a partition in if it is on NVMe. If ``modified`` is set, write it back on exit."""
        if partition.swapped is None:
            yield
            return
        self._optimizer._optimizer_states_and_gradient_swap_in(partition.swapped)
        yield
        if modified:
            self._optimizer._optimizer_states_and_gradient_swap_out(partition.swapped)
        else:
            self._optimizer._release_swap_buffers(partition.swapped)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every parameter's shape over all expert-parallel ranks, by name. The same on every rank."""
        named = self.engine.module.named_parameters()
        return {name: _over_experts(p, tuple(getattr(p, "ds_shape", p.shape)))[0] for name, p in named}

    @torch.no_grad()
    def update_model_weights(self) -> None:
        """Copy the master weights to the model's weights, rounded to the compute dtype. Collective."""
        optimizer = self._optimizer
        if self.engine.zero_optimization_partition_weights():
            optimizer._partition_all_parameters()
            for position, partition in enumerate(self.trained):
                with self.in_memory(partition):
                    optimizer._reassign_or_swap_out_partitioned_parameters(position)
            # Gathers the small (persistent) parameters, of which every rank keeps a full copy.
            optimizer.checkpoint_event_epilogue()
        elif hasattr(optimizer, "update_lp_params"):
            optimizer.update_lp_params()

    def scaler_state(self) -> dict[str, float]:
        """Return the loss scaler's state under fp16, otherwise an empty dict."""
        scaler = self._scaler()
        if scaler is None:
            return {}
        return {key: getattr(scaler, key) for key in _SCALER_STATE if hasattr(scaler, key)}

    def restore_scaler(self, state: dict[str, float]) -> None:
        """Restore the loss scaler from the result of ``scaler_state``."""
        scaler = self._scaler()
        for key, value in state.items() if scaler is not None else ():
            setattr(scaler, key, value)

    def _scaler(self) -> Any:
        return self._optimizer.loss_scaler if self.engine.fp16_enabled() else None


def partitions(engine: Any) -> Partitions:
    """Return a DeepSpeed engine's partitions on this rank, in the order in which the optimizer updates them."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if engine.zero_optimization_partition_weights():
        return _stage_3_partitions(engine, names)
    optimizer = engine.optimizer
    frozen = [_full_parameter(name, p) for p, name in names.items() if not p.requires_grad]
    if engine.zero_optimization():
        groups = getattr(optimizer, "bit16_groups", None) or optimizer.bf16_groups
        flats = getattr(optimizer, "single_partition_of_fp32_groups", None) or optimizer.fp32_groups_flat_partition
        trained = [
            Partition(flat, _group_slices(group, names), group=ranks)
            for group, flat, ranks in zip(groups, flats, optimizer.real_dp_process_group, strict=True)
        ]
        return Partitions(engine, trained, frozen)
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    return Partitions(engine, [_full_parameter(names[p], p) for p in ordered], frozen)


def _full_parameter(name: str, parameter: nn.Parameter) -> Partition:
    """Return the partition for a parameter that every rank of its data-parallel group holds in full."""
    shape, before = _over_experts(parameter, tuple(parameter.shape))
    replicas = None
    if not getattr(parameter, "allreduce", True):
        replicas = _groups()._get_expert_data_parallel_group(getattr(parameter, "group_name"))  # noqa: B009 - AutoEP's
    replica = (dist.get_rank(replicas), dist.get_world_size(replicas))
    return Partition(parameter, [ParamSlice(name, shape, before, parameter.numel(), 0)], replica)


def _group_slices(group: list[nn.Parameter], names: dict[nn.Parameter, str]) -> list[ParamSlice]:
    """Return the slices of a parameter group that this rank's partition contains, at ZeRO stage 1 or 2."""
    slices = []
    for parameter in group:
        fragment = parameter._hp_mapping  # type: ignore[attr-defined]
        if fragment is None:
            continue
        shape, before = _over_experts(parameter, tuple(parameter.shape))
        source, target = fragment.lp_fragment_address, fragment.hp_fragment_address
        slices.append(ParamSlice(names[parameter], shape, before + source.start, source.numel, target.start))
    return sorted(slices, key=lambda piece: piece.offset)


def _stage_3_partitions(engine: Any, names: dict[nn.Parameter, str]) -> Partitions:
    """Return the partitions at ZeRO stage 3, where every parameter is padded and sharded evenly across ranks."""
    optimizer = engine.optimizer
    trained = []
    for position, (group, flat) in enumerate(
        zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    ):
        slices, offset = [], 0
        for parameter in group:
            slices += _stage_3_slice(optimizer, parameter, names[parameter], offset)
            offset += parameter.ds_tensor.ds_numel
        swapped = position if optimizer._swappable_optimizer_subgroup(position) else None
        ranks = optimizer._get_param_partition_group(group[0])
        trained.append(Partition(flat, slices, group=ranks, swapped=swapped))
    frozen = [
        Partition(parameter.ds_tensor, _stage_3_slice(optimizer, parameter, name, 0))  # type: ignore[attr-defined]
        for parameter, name in names.items()
        if not parameter.requires_grad
    ]
    return Partitions(engine, trained, frozen)


def _stage_3_slice(optimizer: Any, parameter: Any, name: str, offset: int) -> list[ParamSlice]:
    """Return this rank's slice of a parameter, excluding padding, or an empty list if the rank holds only padding."""
    shape, before = _over_experts(parameter, tuple(parameter.ds_shape))
    start = parameter.ds_tensor.ds_numel * optimizer._get_param_partition_rank(parameter)
    numel = min(parameter.ds_tensor.ds_numel, parameter.ds_numel - start)
    return [ParamSlice(name, shape, before + start, numel, offset)] if numel > 0 else []


def _over_experts(parameter: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return a parameter's shape over all expert-parallel ranks, and the number of elements on earlier ranks."""
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
