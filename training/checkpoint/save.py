"""Save: DeepSpeed's sharded files and our manifest beside them, published by one rename, the oldest removed after."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from artefacts import manifest, publish
from artefacts.manifest import Manifest
from training.engine.distributed import Ranks


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
    engine: Any, folder: Path, step: int, run_key: str, topology: dict[str, int | str], ranks: Ranks, keep: int
) -> Path:
    """Save the engine's state after ``step`` steps under ``folder``; every rank must call it.

    Args:
        engine: DeepSpeed engine.
        folder: ``checkpoints/`` of the training run.
        step: optimiser steps done; the sample count follows from it.
        run_key: identity of the run, checked at resume.
        topology: ranks, expert_parallel, zero_stage, precision.
        ranks: this process.
        keep: newest checkpoints kept.
    """
    target = folder / folder_name(step)
    work = folder / f".{target.name}.partial"
    if ranks.first:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(folder), tag=work.name, client_state={"step": step}, save_latest=False)
    torch.save(rng_state(ranks.device), work / f"rng-{ranks.rank:05d}.pt")
    dist.barrier()
    if ranks.first:
        for script in ("zero_to_fp32.py", "zero_to_torch.py"):
            # DeepSpeed leaves them beside its checkpoints; they fail on AutoEP's (see training/checkpoint/read.py).
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
        # Only a damaged one can stand here: a whole one of this step would have been resumed from.
        shutil.rmtree(target, ignore_errors=True)
        publish.rename_folder(work, target)
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return target
