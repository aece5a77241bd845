"""What a recipe's model begins with: values drawn from the seed, and a backbone's from where it was trained."""

import torch

from configs.schema import Recipe
from training.checkpoint.full_weights import read_weights, require_checkpoint
from training.export.weights import load_backbone
from training.models.registry import init_weights
from training.runs import backbone_checkpoint


def first_weights(recipe: Recipe, model: torch.nn.Module, experts: range | None = None) -> None:
    """Set every parameter and buffer in place; ``experts``: those that are needed, None: all.

    Raises:
        RequestError: ``model.weights`` names no checkpoint, or one of another model.
    """
    init_weights(model, recipe.run.seed, experts)
    if (checkpoint := backbone_checkpoint(recipe)) is not None:
        require_checkpoint(checkpoint, "pretrain")
        load_backbone(model, read_weights(checkpoint), experts)
