"""A trained model on one device, out of a run's checkpoints."""

import sys
from pathlib import Path
from typing import Any

import torch

from artefacts.layout import RunLayout
from artefacts.training_run import finetune_is_current, given_checkpoint, require_same_tokens
from configs.errors import RequestError
from configs.schema import Recipe
from training.checkpoint.load import newest_whole
from training.checkpoint.read import read_weights, require_checkpoint
from training.devices import choose
from training.export.weights import load_weights
from training.layers import cpu_code
from training.models.families import build_model


def best_device(recipe: Recipe) -> torch.device:
    """``launch.device``, or the best that is here.

    Raises:
        RequestError: it is not here.
    """
    return choose(recipe.launch.device)


def load_model(recipe: Recipe, checkpoint: Path, device: torch.device) -> Any:
    """The recipe's model with a checkpoint's weights, in the precision it was trained in, in evaluation mode.

    Raises:
        RequestError: there is no such checkpoint, or it is damaged or of another model than the recipe's.
    """
    require_same_model(recipe, checkpoint, require_checkpoint(checkpoint, "make pretrain").details["model"])
    model = build_model(recipe.model, recipe.vocab_size)
    load_weights(model, read_weights(checkpoint))
    model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[recipe.train.precision])
    if device.type == "cpu":
        cpu_code.ready()
    return model.to(device).eval()


def require_same_model(recipe: Recipe, checkpoint: Path, trained: dict[str, Any]) -> None:
    """Refuse weights that were trained as another model: a gate of another kind fits them as well, and means nothing.

    A longer context is another matter: that is tried on purpose.
    """
    asked = {**recipe.model.identity(), "vocab_size": recipe.vocab_size}
    # Another family differs in most keys: it is told as that.
    for key, value in sorted(trained.items(), key=lambda item: item[0] != "family"):
        if key in asked and asked[key] != value and key != "max_position_embeddings":
            raise RequestError(
                f"{checkpoint} was trained with model.{key}={value}, the recipe says {asked[key]}: give the recipe and "
                "the overrides that it was trained with"
            )


def wanted_checkpoint(recipe: Recipe, layout: RunLayout) -> Path:
    """``generate.weights``, or else the newest checkpoint of the run.

    Raises:
        RequestError: there is none, or the data were made anew since it was trained.
    """
    if recipe.generate.weights:
        return given_checkpoint(recipe.generate.weights, "generate.weights")
    require_same_tokens(layout)
    return newest_checkpoint(layout)


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
