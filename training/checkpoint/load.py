"""Load: the newest whole checkpoint of a run, and which damaged ones were passed over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artefacts import manifest
from artefacts.manifest import Manifest
from configs.errors import RequestError
from training.engine.distributed import Ranks


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


def newest_whole(checkpoints: Path) -> Found | None:
    """The newest checkpoint whose files are all as its manifest says, or None where there is none."""
    passed_over: list[str] = []
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            faults = manifest.faults(folder)
            found = manifest.read(folder)
        except RequestError as error:
            passed_over.append(str(error))
            continue
        if faults or found is None:
            passed_over.append(f"{folder.name} passed over: {faults[0]}")
            continue
        return Found(folder, int(found.counts["step"]), found, passed_over)
    return None


def load(engine: Any, found: Found, topology: dict[str, int | str], ranks: Ranks) -> int:
    """Restore an engine from a checkpoint of the same topology; returns the steps done.

    Raises:
        RequestError: the checkpoint was written by another topology.
    """
    saved = found.manifest.details["topology"]
    if saved != topology:
        changed = ", ".join(
            f"{key} {saved.get(key)} -> {topology[key]}" for key in topology if saved.get(key) != topology[key]
        )
        raise RequestError(
            f"{found.folder} was written by another topology ({changed}): resume with the one it was written by"
        )
    path, state = engine.load_checkpoint(str(found.folder.parent), tag=found.folder.name)
    if path is None:
        raise RequestError(f"{found.folder}: DeepSpeed could not read it")
    rng = torch.load(found.folder / f"rng-{ranks.rank:05d}.pt", weights_only=True)
    torch.set_rng_state(rng["cpu"])
    if "cuda" in rng and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(rng["cuda"], ranks.device)
    return int(state["step"])
