"""The recipe keys that a supervised model's examples depend on."""

from typing import Any

from configs.schema import Recipe


def examples_identity(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe keys and values that the examples of a supervised model depend on."""
    identity = {
        "task": recipe.task,
        "context_length": recipe.train.context_length,
        "validation_fraction": recipe.data.tokens.validation_fraction,
        "seed": recipe.run.seed,
    }
    return identity | (
        {"classes": recipe.model.identity()["classes"]} if recipe.task == "sequence_classification" else {}
    )
