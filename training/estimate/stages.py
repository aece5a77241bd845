"""The memory of fine-tuning stages, whose batches have another shape than those of pretraining."""

from typing import Any

from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from training.estimate.device import Kind
from training.estimate.memory import Memory, memory


def stage_recipe(recipe: Recipe, stage: FinetuneSection) -> Recipe:
    """Return the recipe with the batches that a fine-tuning stage trains on, so that it can be estimated.

    Samples are rows. A pair of answers has two of them.
    """
    changes: dict[str, Any] = {
        "context_length": stage.max_length,
        "micro_batch": recipe.micro_batch_of(stage) * stage.rows,
        "global_batch_tokens": stage.batch_examples * stage.rows * stage.max_length,
        "mask_documents": False,
    }
    if stage.preference:
        changes["mtp_loss"] = 0.0
    return recipe.model_copy(update={"train_section": recipe.train.model_copy(update=changes)})


def stage_memory(recipe: Recipe, stage: FinetuneSection, device: Kind) -> Memory:
    """Estimate the memory of a fine-tuning stage on a device."""
    return memory(stage_recipe(recipe, stage), device)
