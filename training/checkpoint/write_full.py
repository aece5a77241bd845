"""Writes a weights-only checkpoint in a single file, for imported models."""

import json
from pathlib import Path
from typing import Any

import torch

from artefacts import atomic, manifest
from artefacts.manifest import Manifest
from artefacts.training_folder import checkpoint_name
from training.checkpoint import tensor_file
from training.checkpoint.index import partial_folder_name, rank_file
from training.checkpoint.save import RunIdentity, manifest_details
from training.checkpoint.snapshot import BUFFER, MASTER


@torch.no_grad()
def write_full(checkpoints: Path, model: torch.nn.Module, identity: RunIdentity) -> tuple[Path, Manifest]:
    """Publish a model's fp32 weights and buffers as the checkpoint at step 0. Returns its folder and manifest.

    It contains no optimizer or RNG states, which are needed only to resume.
    """
    partial, target = checkpoints / partial_folder_name(0), checkpoints / checkpoint_name(0)
    partial.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    table: list[dict[str, Any]] = []
    for number, (name, parameter) in enumerate(model.named_parameters()):
        tensors[f"{number}.{MASTER}"] = parameter.detach().float().reshape(-1)
        piece = (name, tuple(parameter.shape), 0, parameter.numel(), 0)
        table.append({"states": [MASTER], "scalars": {}, "slices": [piece]})
    persistent = model.state_dict()
    tensors |= {BUFFER + name: buffer for name, buffer in model.named_buffers() if name in persistent}
    entry = tensor_file.write(partial / rank_file(0), tensors, {"partitions": json.dumps(table)})
    saved = Manifest(
        stage="checkpoint",
        identity=identity.identity,
        inputs=identity.inputs,
        versions=manifest.versions("torch"),
        counts={"step": 0, "samples": 0, "validation_loss": None},
        files={rank_file(0): entry},
        details=manifest_details(identity, {}),
    )
    manifest.write(partial, saved)
    atomic.rename_folder(partial, target)
    return target, saved
