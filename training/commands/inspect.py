"""``python -m training inspect``: what a recipe's model is made of, and how large each part is."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.command import DONE
from configs.schema import Recipe
from configs.schema.models import ModelSection
from training.commands.estimate import lines as estimated
from training.estimate.parameters import parameters
from training.layers.lm_head import OutputHead
from training.layers.moe import Experts
from training.models.registry import build_model

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
    train, longest = recipe.train_section, recipe.model.max_seq_len
    length = train.context_length if train else min(longest or _LENGTH, _LENGTH)
    rows = list(folded([*output_shapes(recipe.model, recipe.vocab_size, length).items()]))
    width, wide = max(len(name) for name, _ in rows), max(len(kind) for _, (kind, _) in rows)
    head = f"{'module':<{width}} {'kind':<{wide}} output for token ids 1 x {length:,}"
    return [head, *(f"{name:<{width}} {kind:<{wide}} {shape}" for name, (kind, shape) in rows)]


V = TypeVar("V")


#: A layer of a stack by the name of a module or tensor in it.
_LAYER = re.compile(r"((?:.*\.)?layers)\.(\d+)(\..*|$)")


def output_shapes(section: ModelSection, vocab_size: int, length: int, samples: int = 1) -> dict[str, tuple[str, str]]:
    """Each module that a forward pass runs by its name, in the order of the model: its class, the shape of its output.

    Where the model has modules of multi-token prediction they run too, as in training.

    Args:
        section: of the model.
        vocab_size: rows of its embedding.
        length: tokens of each sequence; of pairs of the source too.
        samples: sequences.
    """
    found: dict[str, tuple[str, str]] = {}

    def note(name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        found[name] = type(module).__name__, shape_of(output)

    # Unlike the meta device these go the way of CPU, which needs no kernel that is compiled.
    with FakeTensorMode(), torch.no_grad():
        model = build_model(section, vocab_size).eval()
        modules = dict(model.named_modules())
        for name, module in modules.items():
            module.register_forward_hook(partial(note, name))
            _leave_data_alone(module)
        _forward(model, section, torch.zeros(samples, length, dtype=torch.int64))
    # The model itself gives what its head does.
    return {name: found[name] for name in modules if name and name in found}


def _forward(model: Any, section: ModelSection, ids_BT: torch.Tensor) -> None:
    if section.task == "seq2seq":
        model(ids_BT, source=ids_BT)
    elif section.prediction_depth:
        model(ids_BT, targets=[ids_BT] * (1 + section.prediction_depth))
    else:
        model(ids_BT)


def _leave_data_alone(module: Any) -> None:
    """Have a module ask for no numbers, of which there are none: experts give a row a token whichever they are, and
    heads give logits, with labels too.
    """
    if isinstance(module, Experts):
        module.forward = _a_row_each  # type: ignore[method-assign, assignment]
    elif isinstance(module, OutputHead):
        module.forward = partial(_logits, module)  # type: ignore[method-assign]


def _a_row_each(x_MD: torch.Tensor, _routing: Any) -> torch.Tensor:
    return torch.empty_like(x_MD)


def _logits(head: OutputHead, hidden: torch.Tensor, _labels: torch.Tensor | None = None) -> torch.Tensor:
    return OutputHead.forward(head, hidden)


def shape_of(output: Any) -> str:
    """``2 x 16 x 64``; of several tensors all, with their names where they have any; a scalar's is ``1``."""
    if isinstance(output, torch.Tensor):
        return " x ".join(f"{size:,}" for size in output.shape) or "1"
    if isinstance(output, Mapping):
        return ", ".join(f"{name} {shape_of(value)}" for name, value in output.items())
    if isinstance(output, tuple):
        names = [f"{name} " for name in getattr(output, "_fields", [])] or [""] * len(output)
        return ", ".join(f"{name}{shape_of(each)}" for name, each in zip(names, output, strict=True))
    return type(output).__name__


def folded(rows: Sequence[tuple[str, V]]) -> Iterator[tuple[str, V]]:
    """Rows by name, in order, layers of a stack that have the same ones told once, as in ``layers.{3..60}.mlp``."""
    stacks: dict[str, dict[int, dict[str, V]]] = {}
    order: dict[str, tuple[str, V] | None] = {}
    for name, value in rows:
        if match := _LAYER.fullmatch(name):
            stacks.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = value
            order.setdefault(match[1])
        else:
            order[name] = (name, value)
    for name, row in order.items():
        if row is not None:
            yield row
            continue
        layers, first = stacks[name], min(stacks[name])
        for index in sorted(layers):
            if layers.get(index + 1) == layers[index]:
                continue
            span = str(index) if first == index else f"{{{first}..{index}}}"
            yield from ((f"{name}.{span}{rest}", value) for rest, value in layers[index].items())
            first = index + 1
