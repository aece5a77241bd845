"""A trained model on one device, out of a run's checkpoints."""

import os
import sys
from pathlib import Path

import torch

from artefacts.layout import RunLayout
from artefacts.manifest import require_sound
from artefacts.training_run import finetune_is_current
from configs.errors import RequestError
from configs.schema import Recipe
from training.checkpoint.load import newest_whole
from training.checkpoint.read import read_weights
from training.export.weights import load_weights
from training.models.deepseek import DeepseekForCausalLM


def best_device() -> torch.device:
    """A GPU where there is one; else CPU, and DeepSpeed, whose classes stand in checkpoints, is told so."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return torch.device("cpu")


def load_model(recipe: Recipe, checkpoint: Path, device: torch.device) -> DeepseekForCausalLM:
    """The recipe's model with a checkpoint's weights, in the precision it was trained in, in evaluation mode.

    Raises:
        RequestError: there is no such checkpoint, or it is damaged or of another shape than the recipe's model.
    """
    require_sound(checkpoint, "make pretrain")
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    load_weights(model, read_weights(checkpoint))
    if recipe.train.precision == "bf16":
        model = model.to(torch.bfloat16)
    return model.to(device).eval()


def newest_checkpoint(layout: RunLayout) -> Path:
    """The fine-tuned checkpoint of a run, or else its pretrained one; unfinished runs count too.

    Fine-tuning that began from a pretraining since replaced does not count.

    Raises:
        RequestError: neither is there.
    """
    for folder in (layout.finetune, layout.pretrain) if finetune_is_current(layout) else (layout.pretrain,):
        found = newest_whole(folder / "checkpoints")
        if found is not None:
            for line in found.passed_over:
                print(f"warning: {line}", file=sys.stderr)
            return found.folder
    raise RequestError(f"{layout.run} holds no checkpoint: run `make pretrain` first")
