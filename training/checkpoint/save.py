"""Save: DeepSpeed's sharded files and our manifest beside them, published by one rename, the oldest removed after."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from artefacts import manifest, publish
from artefacts.manifest import Manifest
from training.engine.distributed import Ranks

#: What a checkpoint's files depend on: ranks, expert_parallel, zero_stage, precision.
Topology = dict[str, int | str]


def folder_name(step: int) -> str:
    """Name of the checkpoint after ``step`` optimiser steps."""
    return f"step-{step:08d}"


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """torch's random state on CPU and on this process's GPU."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def save(
    engine: Any,
    folder: Path,
    client_state: dict[str, Any],
    run_key: str,
    topology: Topology,
    ranks: Ranks,
    keep: int,
) -> Path:
    """Save the engine's state under ``folder``; every rank must call it.

    Args:
        engine: DeepSpeed engine.
        folder: ``checkpoints/`` of the training run.
        client_state: our own: ``step``, optimiser steps done, from which the sample count follows, and ``balance``, the
            routers' loads (``Balancer.state``).
        run_key: identity of the run, noted in the manifest.
        topology: ranks, expert_parallel, zero_stage, precision.
        ranks: this process.
        keep: newest checkpoints kept.
    """
    step = int(client_state["step"])
    target = folder / folder_name(step)
    work = folder / f".{target.name}.partial"
    if ranks.first:
        for torn in [*folder.glob(".step-*.partial"), *folder.glob(".step-*.universal")]:
            shutil.rmtree(torn)
        work.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=work.name, client_state=client_state, save_latest=False)
    torch.save(rng_state(ranks.device), work / f"rng-{ranks.rank:05d}.pt")
    dist.barrier()
    if ranks.first:
        for script in ("zero_to_fp32.py", "zero_to_torch.py", "latest_universal"):
            # DeepSpeed leaves them beside its checkpoints; the scripts fail on AutoEP's (see checkpoint/read.py).
            (folder / script).unlink(missing_ok=True)
        manifest.write(
            work,
            Manifest(
                stage="checkpoint",
                identity={"run": run_key},
                inputs={},
                versions=manifest.versions("torch", "deepspeed"),
                counts={"step": step},
                files=manifest.describe_files(work),
                details={"topology": topology},
            ),
        )
        # What stands under this name or a later one was passed over at resume as damaged.
        for damaged in [path for path in folder.glob("step-*") if path.name >= target.name]:
            shutil.rmtree(damaged)
        publish.rename_folder(work, target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return target
