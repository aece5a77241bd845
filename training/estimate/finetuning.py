"""What a fine-tuning stage trains, and the recipe that it trains with, for estimates. Imports no torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from configs.schema import Recipe
from configs.schema.adapter import LoraSection
from configs.schema.finetune import FinetuneSection
from training.adapter_names import EXPERT_WEIGHTS, LINEAR_TARGETS
from training.estimate.parameter_shapes import parameter_shapes

#: Names of the embeddings, learned positions and the head.
TABLES = ("model.embed_tokens.weight", "model.positions.weight", "lm_head.weight")
_RESET = {"embeddings": "model.embed_tokens.weight", "head": "lm_head.weight"}


@dataclass(frozen=True)
class TrainedNumbers:
    """How many parameters a stage trains, over all ranks.

    Attributes:
        plain: trained parameters outside routed experts, including adapters.
        experts: trained parameters of routed experts.
        adapters: parameters that adapters add to the model.
        tables: trained parameters of the embeddings, learned positions and the head.
        head: whether the output head is trained.
    """

    plain: int
    experts: int
    adapters: int
    tables: int
    head: bool

    @property
    def total(self) -> int:
        return self.plain + self.experts


def trained_numbers(recipe: Recipe, stage: FinetuneSection) -> TrainedNumbers:
    """Count the parameters that a fine-tuning stage trains. Patterns that match nothing are ignored."""
    shapes = dict(parameter_shapes(recipe.model, recipe.vocab_size))
    trained = trained_names(shapes, stage)
    numbers = {name: math.prod(shapes[name]) for name in trained}
    experts = sum(number for name, number in numbers.items() if ".experts." in name)
    adapters = sum(adapter_size(stage.lora, name, shape) for name, shape in shapes.items()) if stage.lora else 0
    return TrainedNumbers(
        plain=sum(numbers.values()) - experts + adapters,
        experts=experts,
        adapters=adapters,
        tables=sum(number for name, number in numbers.items() if name in TABLES),
        head="lm_head.weight" in trained or ("lm_head.weight" not in shapes and TABLES[0] in trained),
    )


def trained_names(names: Iterable[str], stage: FinetuneSection) -> set[str]:
    """Return which of a model's own parameters a stage trains. Patterns that match nothing are ignored."""
    if stage.lora:
        return {_RESET[table] for table in stage.reset} & set(names)
    return {name for name in names if not any(fnmatchcase(name, pattern) for pattern in stage.freeze)}


def adapter_size(lora: LoraSection, name: str, shape: tuple[int, ...]) -> int:
    """Return the number of parameters in a weight's adapter, or 0 if it has none."""
    if lora.routed and name.endswith(tuple(f".mlp.experts.{stack}" for stack in EXPERT_WEIGHTS)):
        experts, outputs, inputs = shape
        return experts * lora.rank * (inputs + outputs)
    patterns = [LINEAR_TARGETS[target] for target in lora.targets or LINEAR_TARGETS if target != "routed_experts"]
    layer = name.removesuffix(".weight")
    if layer == name or not any(pattern.fullmatch(layer) for pattern in patterns):
        return 0
    outputs, inputs = shape
    return lora.rank * (inputs + outputs) + (outputs if lora.dora else 0)


def finetuning_recipe(recipe: Recipe, stage: FinetuneSection) -> Recipe:
    """Return the recipe with the lengths and the batch of a fine-tuning stage, in its ``train`` section.

    Samples are rows. A pair of answers has two of them.
    """
    changes: dict[str, Any] = {
        "context_length": stage.max_length,
        "global_batch_tokens": stage.batch_examples * stage.rows * stage.max_length,
        "micro_batch": recipe.micro_batch_of(stage) * stage.rows,
        "mask_documents": False,
    }
    if stage.preference:
        changes["mtp_loss"] = 0.0
    return recipe.model_copy(update={"train_section": recipe.train.model_copy(update=changes)})
