"""TODO: pipeline/examples/identity.py."""

from typing import Any

from configs.schema import Recipe


def examples_identity(recipe: Recipe) -> dict[str, Any]:
    """The recipe keys that the examples depend on of a model that learns from no running text."""
    found = {
        "task": recipe.task,
        "context_length": recipe.train.context_length,
        "validation_fraction": recipe.data.tokens.validation_fraction,
        "seed": recipe.run.seed,
    }
    return found | ({"classes": recipe.model.identity()["classes"]} if recipe.task == "sequence_classification" else {})
