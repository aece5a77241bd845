"""A checkpoint of weights alone, in one file: of a model that was not trained here."""

import json
from pathlib import Path
from typing import Any

import torch

from artefacts import atomic, manifest
from artefacts.manifest import Manifest
from training.checkpoint import tensor_file
from training.checkpoint.index import folder_name, rank_file
from training.checkpoint.save import About, details
from training.checkpoint.snapshot import BUFFER, MASTER


@torch.no_grad()
def write_whole(checkpoints: Path, model: torch.nn.Module, about: About) -> tuple[Path, Manifest]:
    """Publish a model's fp32 weights and buffers as the checkpoint of step 0; its folder and its manifest.

    Nothing but a resume needs what it lacks: the optimiser's state and random states.
    """
    partial, target = checkpoints / f".{folder_name(0)}.partial", checkpoints / folder_name(0)
    partial.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    table: list[dict[str, Any]] = []
    for number, (name, parameter) in enumerate(model.named_parameters()):
        tensors[f"{number}.{MASTER}"] = parameter.detach().float().reshape(-1)
        stretch = (name, tuple(parameter.shape), 0, parameter.numel(), 0)
        table.append({"states": [MASTER], "scalars": {}, "stretches": [stretch]})
    kept = model.state_dict()
    tensors |= {BUFFER + name: buffer for name, buffer in model.named_buffers() if name in kept}
    entry = tensor_file.write(partial / rank_file(0), tensors, {"partitions": json.dumps(table)})
    made = Manifest(
        stage="checkpoint",
        identity=about.identity,
        inputs=about.inputs,
        versions=manifest.versions("torch"),
        counts={"step": 0, "samples": 0, "validation_loss": None},
        files={rank_file(0): entry},
        details=details(about, {}),
    )
    manifest.write(partial, made)
    atomic.rename_folder(partial, target)
    return target, made
