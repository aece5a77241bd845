"""Load: the newest whole checkpoint of a run, which damaged ones were passed over, and an engine restored from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from artefacts import manifest
from artefacts.differences import first_difference
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from training.checkpoint.index import Contents, Parameter, fault_of_format, folder_name, saved_steps
from training.checkpoint.save import About
from training.checkpoint.snapshot import MASTER
from training.distributed.ranks import Ranks, broadcast_value
from training.engine.partitions import Partition, Stretch, partitions


@dataclass(frozen=True)
class Found:
    """A whole checkpoint.

    Attributes:
        folder: where it lies.
        step: optimiser steps done.
        manifest: its manifest.
        passed_over: a line for each newer one that is damaged.
    """

    folder: Path
    step: int
    manifest: Manifest
    passed_over: list[str]


def newest_whole(checkpoints: Path, ranks: Ranks | None = None) -> Found | None:
    """The newest checkpoint whose files are all as its manifest says, or None where there is none at all.

    With ``ranks``, of which every one must call it, they divide the files between them.

    Raises:
        RequestError: there are checkpoints and every one is damaged; beginning anew must be the user's decision.
    """
    names = [folder_name(step) for step in reversed(saved_steps(checkpoints))]
    passed_over: list[str] = []
    for name in names if ranks is None else broadcast_value(names):
        found, faults = _examine(checkpoints / name, ranks)
        if found is not None and not faults:
            return Found(checkpoints / name, int(found.counts["step"]), found, passed_over)
        passed_over.append(f"{name} passed over: {faults[0]}")
    if passed_over:
        raise RequestError(f"{passed_over[0]}; no checkpoint there can be read: move {checkpoints} away to begin again")
    return None


def _examine(folder: Path, ranks: Ranks | None) -> tuple[Manifest | None, list[str]]:
    """A checkpoint's manifest and faults, the same on every rank."""
    found = None
    try:
        faults = manifest.faults(folder, share=(ranks.rank, ranks.size) if ranks else (0, 1))
        found = manifest.read(folder)
        if found is not None and (fault := fault_of_format(found)):
            faults.append(fault)
    except (RequestError, OSError) as error:  # of one rank alone, perhaps: the others wait for its word
        faults = [str(error)]
    if ranks is None:
        return found, faults
    every: list[Any] = [None] * ranks.size
    dist.all_gather_object(every, faults)
    return found, [fault for faults in every for fault in faults]


class Resumption:
    """Restoring an engine from a checkpoint of the same topology or of any other."""

    def __init__(self, found: Found, about: About) -> None:
        """Compare what the checkpoint is of with what is to be trained.

        Raises:
            RequestError: it is of another run; with the first key that differs.
        """
        self.found = found
        saved = found.manifest
        asked = {**about.identity, "inputs": about.inputs}
        if difference := first_difference({**saved.identity, "inputs": saved.inputs}, asked):
            raise RequestError(f"{found.folder} is a checkpoint of another run: {difference}; move it away")
        before = saved.details["topology"]
        changed = [key for key, value in about.topology.items() if before.get(key) != value]
        self.changes = ", ".join(f"{key} {before.get(key)} -> {about.topology[key]}" for key in changed)

    @torch.no_grad()
    def load(self, engine: Any, ranks: Ranks) -> dict[str, Any]:
        """Restore the engine; every rank must call it. Returns our own state as it was given to ``Saver.begin``.

        Each rank reads what it needs of the parameters that it holds, wherever it was written.

        Raises:
            RequestError: the checkpoint holds other parameters than the model has.
        """
        contents = self._contents(ranks)
        here = partitions(engine)
        _require_same_shapes(here.shapes(), contents)
        for partition in here.trained:
            with here.present(partition, changed=True):
                _fill(partition, here.state(partition), contents)
        for partition in here.frozen:
            for stretch in partition.stretches:
                _place(partition.master, stretch, contents, MASTER)
        here.publish()
        buffers = dict(engine.module.named_buffers())
        for name, saved in contents.buffers().items():
            buffers[name].copy_(saved)
        details = self.found.manifest.details
        here.restore_scaler(details["state"]["scaler"])
        if details["topology"]["ranks"] == ranks.size:
            _restore_random(contents.random_states(ranks.rank), ranks.device)
        engine.global_steps = self.found.step
        state: dict[str, Any] = details["state"]
        return state

    def _contents(self, ranks: Ranks) -> Contents:
        """What rank 0 finds in it, on every rank; what it must refuse, all refuse."""
        found: Contents | str | None = None
        if ranks.first:
            try:
                found = Contents(self.found.folder)
            except RequestError as error:
                found = str(error)
        found = broadcast_value(found)
        if not isinstance(found, Contents):
            raise RequestError(str(found))
        return found


def _require_same_shapes(shapes: dict[str, tuple[int, ...]], contents: Contents) -> None:
    saved = {name: parameter.shape for name, parameter in contents.parameters.items()}
    for name in sorted({*shapes, *saved}):
        if shapes.get(name) != saved.get(name):
            raise RequestError(
                f"{contents.folder} is of another model: {name} is {saved.get(name, 'not there')}, the recipe's is "
                f"{shapes.get(name, 'not there')}"
            )


def _fill(partition: Partition, state: dict[str, Any], contents: Contents) -> None:
    for stretch in partition.stretches:
        parameter = contents.parameters[stretch.name]
        for key in parameter.states:
            if key != MASTER and key not in state:
                state[key] = torch.zeros_like(partition.master, requires_grad=False)
            _place(partition.master if key == MASTER else state[key], stretch, contents, key)
        state.update(_scalars(parameter, partition.master.device))


def _place(into: torch.Tensor, stretch: Stretch, contents: Contents, key: str) -> None:
    elements = contents.read(stretch.name, key, stretch.start, stretch.numel)
    into.view(-1).narrow(0, stretch.offset, stretch.numel).copy_(elements)


def _scalars(parameter: Parameter, device: torch.device) -> dict[str, torch.Tensor]:
    return {key: torch.tensor(value, dtype=torch.float32, device=device) for key, value in parameter.scalars.items()}


def _restore_random(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
