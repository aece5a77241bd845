"""Finds the newest complete checkpoint of a run, and restores an engine from it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from artefacts import manifest
from artefacts.differences import first_difference
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.training_folder import CHECKPOINTS, checkpoint_name, finished, has_weights, saved_steps
from training.checkpoint.index import Contents, Parameter, fault_of_format
from training.checkpoint.save import RunIdentity
from training.checkpoint.snapshot import MASTER
from training.distributed.ranks import Ranks, broadcast_value
from training.engine.partitions import ParamSlice, Partition, partitions


@dataclass(frozen=True)
class CheckpointRef:
    """A complete checkpoint on disk.

    Attributes:
        folder: the checkpoint's folder.
        step: optimizer steps done.
        manifest: the checkpoint's manifest.
        skipped: one message for each newer checkpoint that cannot be read.
    """

    folder: Path
    step: int
    manifest: Manifest
    skipped: list[str]


def newest_complete(checkpoints: Path, ranks: Ranks | None = None) -> CheckpointRef | None:
    """Return the newest checkpoint whose files all match its manifest, or None if there are no checkpoints.

    If ``ranks`` is set, every rank must call this function, and each verifies some of the files.

    Raises:
        RequestError: there are checkpoints but none can be read. Only the user may decide to start over.
    """
    names = [checkpoint_name(step) for step in reversed(saved_steps(checkpoints))]
    skipped: list[str] = []
    for name in names if ranks is None else broadcast_value(names):
        saved, faults = _examine(checkpoints / name, ranks)
        if saved is not None and not faults:
            return CheckpointRef(checkpoints / name, int(saved.counts["step"]), saved, skipped)
        skipped.append(f"{name} skipped: {faults[0]}")
    if skipped:
        raise RequestError(f"{skipped[0]}; no checkpoint there can be read: move {checkpoints} away to start again")
    return None


def usable_checkpoint(folder: Path) -> CheckpointRef | None:
    """Return the checkpoint that a finished run ends with, or an unfinished run's newest complete checkpoint.

    If the finished run's checkpoint is damaged, the newest complete one is returned. Returns None if there are no
    checkpoints in the training folder.

    Raises:
        RequestError: there are checkpoints but none can be read.
    """
    final = finished(folder) if has_weights(folder) else None
    if final is None:
        return newest_complete(folder / CHECKPOINTS)
    name = final.details["checkpoint"]
    saved, faults = _examine(folder / CHECKPOINTS / name, None)
    if saved is not None and not faults:
        return CheckpointRef(folder / CHECKPOINTS / name, int(saved.counts["step"]), saved, [])
    newest = newest_complete(folder / CHECKPOINTS)
    skipped = f"{name} skipped: {faults[0] if faults else 'missing'}"
    return newest and replace(newest, skipped=list(dict.fromkeys([skipped, *newest.skipped])))


def _examine(folder: Path, ranks: Ranks | None) -> tuple[Manifest | None, list[str]]:
    """Return a checkpoint's manifest and the problems found by all ranks."""
    saved = None
    try:
        faults = manifest.faults(folder, share=(ranks.rank, ranks.size) if ranks else (0, 1))
        saved = manifest.read(folder)
        if saved is not None and (fault := fault_of_format(saved)):
            faults.append(fault)
    except (RequestError, OSError) as error:  # may occur on this rank only; the others wait in the collective below
        faults = [str(error)]
    if ranks is None:
        return saved, faults
    gathered: list[Any] = [None] * ranks.size
    dist.all_gather_object(gathered, faults)
    return saved, [fault for faults in gathered for fault in faults]


class Resumption:
    """Restores an engine from a checkpoint, which may have been saved with a different topology."""

    def __init__(self, checkpoint: CheckpointRef, identity: RunIdentity) -> None:
        """Check that the checkpoint belongs to the run to be trained.

        Raises:
            RequestError: the checkpoint is from a different run. The message names the first key that differs.
        """
        self.checkpoint = checkpoint
        saved = checkpoint.manifest
        wanted = {**identity.identity, "inputs": identity.inputs}
        if difference := first_difference({**saved.identity, "inputs": saved.inputs}, wanted):
            raise RequestError(f"{checkpoint.folder} is a checkpoint of a different run: {difference}; move it away")
        before = saved.details["topology"]
        changed = [key for key, value in identity.topology.items() if before.get(key) != value]
        self.changes = ", ".join(f"{key} {before.get(key)} -> {identity.topology[key]}" for key in changed)

    @torch.no_grad()
    def load(self, engine: Any, ranks: Ranks) -> dict[str, Any]:
        """Restore the engine. Returns the ``state`` that was passed to ``Saver.begin``.

        Collective. Each rank reads only the elements it holds, from whichever files contain them.

        Raises:
            RequestError: the checkpoint's parameters do not match the model's.
        """
        contents = self._contents(ranks)
        local = partitions(engine)
        _require_same_shapes(local.shapes(), contents)
        for partition in local.trained:
            with local.in_memory(partition, modified=True):
                _restore_partition(partition, local.state(partition), contents)
        for partition in local.frozen:
            for piece in partition.slices:
                _copy_slice(partition.master, piece, contents, MASTER)
        local.update_model_weights()
        buffers = dict(engine.module.named_buffers())
        for name, saved in contents.buffers().items():
            buffers[name].copy_(saved)
        details = self.checkpoint.manifest.details
        local.restore_scaler(details["state"]["scaler"])
        if details["topology"]["ranks"] == ranks.size:
            _restore_random(contents.random_states(ranks.rank), ranks.device)
        engine.global_steps = self.checkpoint.step
        state: dict[str, Any] = details["state"]
        return state

    def _contents(self, ranks: Ranks) -> Contents:
        """Return the checkpoint's index. Rank 0 reads and broadcasts it; if that fails, every rank raises the error."""
        contents: Contents | str | None = None
        if ranks.first:
            try:
                contents = Contents(self.checkpoint.folder)
            except RequestError as error:
                contents = str(error)
        contents = broadcast_value(contents)
        if not isinstance(contents, Contents):
            raise RequestError(str(contents))
        return contents


def _require_same_shapes(shapes: dict[str, tuple[int, ...]], contents: Contents) -> None:
    saved = {name: parameter.shape for name, parameter in contents.parameters.items()}
    for name in sorted({*shapes, *saved}):
        if shapes.get(name) != saved.get(name):
            raise RequestError(
                f"{contents.folder} is a checkpoint of a different model: {name} is {saved.get(name, 'missing')}, in "
                f"the recipe's model it is {shapes.get(name, 'missing')}"
            )


def _restore_partition(partition: Partition, state: dict[str, Any], contents: Contents) -> None:
    for piece in partition.slices:
        parameter = contents.parameters[piece.name]
        for key in parameter.states:
            if key != MASTER and key not in state:
                state[key] = torch.zeros_like(partition.master, requires_grad=False)
            _copy_slice(partition.master if key == MASTER else state[key], piece, contents, key)
        state.update(_scalars(parameter, partition.master.device))


def _copy_slice(into: torch.Tensor, piece: ParamSlice, contents: Contents, key: str) -> None:
    elements = contents.read(piece.name, key, piece.start, piece.numel)
    into.view(-1).narrow(0, piece.offset, piece.numel).copy_(elements)


def _scalars(parameter: Parameter, device: torch.device) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value, dtype=torch.float32, device=device) for key, value in parameter.scalars.items()}


def _restore_random(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
