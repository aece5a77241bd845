"""``python -m training inspect``: every tensor of a recipe's model with its shape, and how many parameters it has."""

import re
from collections.abc import Iterator

import torch

from configs.command import DONE
from configs.schema import Recipe
from training.estimate.parameters import parameters
from training.models.families import build_model


def inspect(recipe: Recipe) -> int:
    """Print what ``lines`` gives; returns the exit status. Nothing is allocated, whatever the size."""
    print("\n".join(lines(recipe)))
    return DONE


def lines(recipe: Recipe) -> list[str]:
    """Every tensor, layers of one form once, then parameters, active parameters and router biases in closed form.

    The number of parameters is also counted on the built model, and the two are compared.
    """
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.vocab_size)
    counts = parameters(recipe.model, recipe.vocab_size)
    built = sum(parameter.numel() for parameter in model.parameters())
    if built != counts.all:
        raise AssertionError(f"the closed form says {counts.all} parameters, the built model has {built}")
    found = [f"{name:<66} {shape}" for name, shape in _tree(model)]
    rows = [("parameters", counts.total), ("active a token", counts.active)]
    if counts.prediction:
        rows.append(("multi-token prediction, in training", counts.prediction))
    if recipe.model.has_experts:
        rows.append(("router biases", counts.router_biases))
    return [*found, "", *(f"{name:<36}{count:>20,}" for name, count in rows)]


def _tree(model: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """Name and shape of each tensor; layers that have the same tensors are told together, as in ``layers.{3..60}``."""
    outside: dict[str, str] = {}
    stacks: dict[str, dict[int, dict[str, str]]] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        shape = " x ".join(f"{size:,}" for size in tensor.shape)
        if match := re.match(r"(.*\.layers)\.(\d+)\.(.*)", name):
            stacks.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = shape
            name = match[1]
        outside[name] = shape
    for name, shape in outside.items():
        yield from _layers(name, stacks[name]) if name in stacks else [(name, shape)]


def _layers(stack: str, layers: dict[int, dict[str, str]]) -> Iterator[tuple[str, str]]:
    first = 0
    for index in sorted(layers):
        if index + 1 in layers and layers[index + 1] == layers[index]:
            continue
        span = str(index) if first == index else f"{{{first}..{index}}}"
        for name, shape in layers[index].items():
            yield f"{stack}.{span}.{name}", shape
        first = index + 1
