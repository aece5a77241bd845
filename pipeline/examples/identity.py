"""The recipe keys that a supervised model's examples depend on."""

from typing import Any

from configs.schema import Recipe


def examples_identity(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe keys that the examples depend on, for a model trained on documents with targets."""
    identity = {
        "task": recipe.task,
        "context_length": recipe.train.context_length,
        "validation_fraction": recipe.data.tokens.validation_fraction,
        "seed": recipe.run.seed,
    }
    return identity | (
        {"classes": recipe.model.identity()["classes"]} if recipe.task == "sequence_classification" else {}
    )
