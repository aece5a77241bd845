"""Load: the newest whole checkpoint of a run, and which damaged ones were passed over."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from artefacts import manifest
from artefacts.manifest import Manifest
from configs.errors import RequestError
from training.checkpoint.save import Topology
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
    """The newest checkpoint whose files are all as its manifest says, or None where there is none at all.

    Raises:
        RequestError: there are checkpoints and every one is damaged; beginning anew must be the user's decision.
    """
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
    if passed_over:
        raise RequestError(f"{passed_over[0]}; no checkpoint there is whole: `rm -r {checkpoints}` begins anew")
    return None


class Resumption:
    """Restoring an engine from a checkpoint, of the same topology or, for ZeRO 1 and 2, of another.

    Another number of ranks, expert-parallel size or stage (1 and 2) goes over DeepSpeed's universal format, which
    rank 0 writes beside the checkpoint and removes once it is read.
    """

    def __init__(self, found: Found, topology: Topology) -> None:
        """Compare the topologies.

        Raises:
            RequestError: they differ, and one of them is of a stage that cannot be converted.
        """
        self.found = found
        saved = found.manifest.details["topology"]
        differing = [key for key in topology if saved.get(key) != topology[key]]
        self.changes = ", ".join(f"{key} {saved.get(key)} -> {topology[key]}" for key in differing)
        stages = {saved["zero_stage"], topology["zero_stage"]}
        if self.changes and not stages <= {1, 2}:
            # DeepSpeed 0.19.8 resumes ZeRO-3 with AutoEP from the universal format wrongly and without a word, and has
            # no conversion for stage 0.
            raise RequestError(
                f"{found.folder} was written by another topology ({self.changes}), and only ZeRO stages 1 and 2 can be "
                "converted: resume with the one it was written by"
            )

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """DeepSpeed's configuration for the engine that will be restored."""
        return {**config, "checkpoint": {"load_universal": True}} if self.changes else config

    def load(self, engine: Any, ranks: Ranks, restore_balance: Callable[[dict[str, Any]], None]) -> int:
        """Restore the engine and what was saved of balancing; every rank must call it. Returns the steps done."""
        folder = self.found.folder
        if not self.changes:
            _, state = engine.load_checkpoint(str(folder.parent), tag=folder.name)
            self._restore_rng(ranks)
            restore_balance(state.get("balance", {}))
            return int(state["step"])
        universal = folder.with_name(f".{folder.name}.universal")
        if ranks.first:
            _convert(folder, universal)
        dist.barrier()
        _, state = engine.load_checkpoint(str(folder.parent), tag=universal.name)
        self._restore_buffers(engine)
        dist.barrier()
        if ranks.first:
            shutil.rmtree(universal)
        restore_balance(state.get("balance", {}))
        return int(state["step"])

    def _restore_rng(self, ranks: Ranks) -> None:
        rng = torch.load(self.found.folder / f"rng-{ranks.rank:05d}.pt", weights_only=True)
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and ranks.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], ranks.device)

    def _restore_buffers(self, engine: Any) -> None:
        """The universal format leaves buffers out, the routers' biases with them."""
        saved = torch.load(
            self.found.folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False, mmap=True
        )
        buffers = dict(engine.module.named_buffers())
        for name in saved["buffer_names"]:
            buffers[name].copy_(saved["module"][name])


def _convert(folder: Path, universal: Path) -> None:
    """Write DeepSpeed's universal form of a checkpoint beside it."""
    shutil.rmtree(universal, ignore_errors=True)
    argv = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    argv += ["--input_folder", str(folder), "--output_folder", str(universal)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder}: converting it failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
