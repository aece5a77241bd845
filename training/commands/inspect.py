"""``python -m training inspect``: what a recipe's model is made of, and how large each part is."""

import torch

from configs.command import DONE
from configs.schema import Recipe
from training.commands.estimate import lines as estimated
from training.estimate.parameters import parameters
from training.models.registry import build_model
from training.shapes import folded, output_shapes, shape_of

#: Tokens of a sequence where neither the recipe nor the model says how many.
_LENGTH = 16


def inspect(recipe: Recipe) -> int:
    """Print what ``lines`` gives; returns the exit status. Nothing is allocated, whatever the size."""
    print("\n".join(lines(recipe)))
    return DONE


def lines(recipe: Recipe) -> list[str]:
    """Every tensor with its shape, every module with its output's, parameters and FLOPs by part, and the sums.

    Layers of one form are told once. The number of parameters in closed form is also counted on the built model, and
    the two are compared.
    """
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.vocab_size)
    counts = parameters(recipe.model, recipe.vocab_size)
    built = sum(parameter.numel() for parameter in model.parameters())
    if built != counts.all:
        raise AssertionError(f"the closed form says {counts.all} parameters, the built model has {built}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    found = [f"{name:<66} {shape}" for name, shape in folded([(name, shape_of(each)) for name, each in tensors])]
    rows = [("parameters", counts.total), ("active a token", counts.active)]
    if counts.prediction:
        rows.append(("multi-token prediction, in training", counts.prediction))
    if recipe.model.has_experts:
        rows.append(("router biases", counts.router_biases))
    return [
        *found,
        "",
        *outputs(recipe),
        "",
        *([*estimated(recipe), ""] if recipe.train_section else []),
        *(f"{name:<36}{count:>20,}" for name, count in rows),
    ]


def outputs(recipe: Recipe) -> list[str]:
    """What each module gives for one sequence of the recipe's length."""
    train, longest = recipe.train_section, recipe.model.longest
    length = train.context_length if train else min(longest or _LENGTH, _LENGTH)
    rows = list(folded([*output_shapes(recipe.model, recipe.vocab_size, length).items()]))
    width, wide = max(len(name) for name, _ in rows), max(len(kind) for _, (kind, _) in rows)
    head = f"{'module':<{width}} {'kind':<{wide}} output for token ids 1 x {length:,}"
    return [head, *(f"{name:<{width}} {kind:<{wide}} {shape}" for name, (kind, shape) in rows)]
