"""``python -m training inspect --compare``: a table that compares recipes, computed without torch."""

from collections.abc import Sequence
from typing import Any

from artefacts.pages.formats import compact
from artefacts.tables import aligned
from configs.command import DONE
from configs.schema import Recipe
from training.estimate.device import device_of
from training.estimate.flops import flops_per_token
from training.estimate.memory import checkpoint_bytes, memory
from training.estimate.parameters import parameters

_HEAD = ("name", "family", "layers", "heads", "hidden", "vocabulary", "parameters", "active", "FLOPs per token")
_OF_TRAINING = ("memory per rank", "checkpoint")


def compare(recipes: Sequence[Recipe]) -> int:
    """Print the table. Returns the exit status."""
    print("\n".join(lines(recipes)))
    return DONE


def lines(recipes: Sequence[Recipe]) -> list[str]:
    """Format a table with one row per recipe.

    Each row shows the model's shape, its exact parameter counts, and its forward plus backward FLOPs per token at the
    recipe's context length. The last two columns are the peak memory per rank and the checkpoint size with the recipe's
    training settings. A dash marks a value that a recipe does not have.
    """
    return aligned([(*_HEAD, *_OF_TRAINING), *(_row(recipe) for recipe in recipes)], names=2)


def _row(recipe: Recipe) -> tuple[str, ...]:
    model: Any = recipe.model
    sizes = getattr(model, "backbone", model)
    family = model.family if sizes is model else f"{model.family} ({sizes.family})"
    counts = parameters(recipe.model, recipe.vocab_size)
    layers = str(getattr(sizes, "num_hidden_layers", "-"))
    if hasattr(model, "depth_of_decoder"):
        layers = f"{layers}+{model.depth_of_decoder}"
    shape = (layers, str(getattr(sizes, "num_attention_heads", "-")), f"{getattr(sizes, 'hidden_size', '-')}")
    numbers = (f"{recipe.vocab_size:,}", f"{counts.total:,}", f"{counts.active:,}")
    if recipe.train_section is None:
        return (recipe.run.name, family, *shape, *numbers, "-", "-", "-")
    predicts = recipe.train.mtp_loss > 0
    flops = flops_per_token(recipe.model, recipe.vocab_size, recipe.train.context_length, predicts)
    peak = memory(recipe, device_of(recipe).kind).peak
    saved = checkpoint_bytes(recipe)
    return (recipe.run.name, family, *shape, *numbers, f"{flops:.4g}", compact(peak, "B"), compact(saved, "B"))
