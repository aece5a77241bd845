"""``python -m training inspect``: the tensors, modules and sizes of a recipe's model."""

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

#: Tokens of a sequence if neither the recipe nor the model defines a length.
_LENGTH = 16


def inspect(recipe: Recipe) -> int:
    """Print :func:`lines`; returns the exit status. Nothing is allocated, whatever the size of the model."""
    print("\n".join(lines(recipe)))
    return DONE


def lines(recipe: Recipe) -> list[str]:
    """Every tensor and the output of every module with its shape, parameters and FLOPs by part, and the sums.

    Equal layers are listed once. The number of parameters in closed form is compared with that of the built model.
    """
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.vocab_size)
    counts = parameters(recipe.model, recipe.vocab_size)
    built = sum(parameter.numel() for parameter in model.parameters())
    if built != counts.all:
        raise AssertionError(f"the closed form has {counts.all} parameters, the built model {built}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = [(name, shape_of(tensor)) for name, tensor in tensors]
    rows = [("parameters", counts.total), ("active per token", counts.active)]
    if counts.prediction:
        rows.append(("multi-token prediction, in training", counts.prediction))
    if recipe.model.has_experts:
        rows.append(("router biases", counts.router_biases))
    return [
        *(f"{name:<66} {shape}" for name, shape in folded(shapes)),
        "",
        *outputs(recipe),
        "",
        *([*estimated(recipe), ""] if recipe.train_section else []),
        *(f"{name:<36}{count:>20,}" for name, count in rows),
    ]


def outputs(recipe: Recipe) -> list[str]:
    """The output shape of each module for one sequence of the recipe's length."""
    train, max_seq_len = recipe.train_section, recipe.model.max_seq_len
    length = train.context_length if train else min(max_seq_len or _LENGTH, _LENGTH)
    rows = list(folded([*output_shapes(recipe.model, recipe.vocab_size, length).items()]))
    width, wide = max(len(name) for name, _ in rows), max(len(kind) for _, (kind, _) in rows)
    head = f"{'module':<{width}} {'kind':<{wide}} output for token ids 1 x {length:,}"
    return [head, *(f"{name:<{width}} {kind:<{wide}} {shape}" for name, (kind, shape) in rows)]


V = TypeVar("V")


#: The layer of a stack in the name of a module or tensor.
_LAYER = re.compile(r"((?:.*\.)?layers)\.(\d+)(\..*|$)")


def output_shapes(section: ModelSection, vocab_size: int, length: int, samples: int = 1) -> dict[str, tuple[str, str]]:
    """Class and output shape of each module that a forward pass runs, by its name, in the order of the model.

    Modules of multi-token prediction run too, as in training.

    Args:
        section: of the model.
        vocab_size: rows of its embedding.
        length: tokens of each sequence, and of each source of an encoder-decoder.
        samples: sequences.
    """
    shapes: dict[str, tuple[str, str]] = {}

    def note(name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        shapes[name] = type(module).__name__, shape_of(output)

    # Unlike meta tensors, fake tensors take the CPU path, which needs no compiled kernel.
    with FakeTensorMode(), torch.no_grad():
        model = build_model(section, vocab_size).eval()
        modules = dict(model.named_modules())
        for name, module in modules.items():
            module.register_forward_hook(partial(note, name))
            _ignore_values(module)
        _forward(model, section, torch.zeros(samples, length, dtype=torch.int64))
    # Without the model itself, whose output is that of its head.
    return {name: shapes[name] for name in modules if name and name in shapes}


def _forward(model: Any, section: ModelSection, ids_BT: torch.Tensor) -> None:
    if section.task == "seq2seq":
        model(ids_BT, source=ids_BT)
    elif section.prediction_depth:
        model(ids_BT, targets=[ids_BT] * (1 + section.prediction_depth))
    else:
        model(ids_BT)


def _ignore_values(module: Any) -> None:
    """Keep a module from reading values, which fake tensors lack: experts return one row per token, and heads return
    logits, with labels too.
    """
    if isinstance(module, Experts):
        module.forward = _row_per_token  # type: ignore[method-assign, assignment]
    elif isinstance(module, OutputHead):
        module.forward = partial(_logits, module)  # type: ignore[method-assign]


def _row_per_token(x_MD: torch.Tensor, _routing: Any) -> torch.Tensor:
    return torch.empty_like(x_MD)


def _logits(head: OutputHead, hidden: torch.Tensor, _labels: torch.Tensor | None = None) -> torch.Tensor:
    return OutputHead.forward(head, hidden)


def shape_of(output: Any) -> str:
    """``2 x 16 x 64``; for several tensors all shapes, with names if they have any; ``1`` for a scalar."""
    if isinstance(output, torch.Tensor):
        return " x ".join(f"{size:,}" for size in output.shape) or "1"
    if isinstance(output, Mapping):
        return ", ".join(f"{name} {shape_of(value)}" for name, value in output.items())
    if isinstance(output, tuple):
        names = [f"{name} " for name in getattr(output, "_fields", [])] or [""] * len(output)
        return ", ".join(f"{name}{shape_of(value)}" for name, value in zip(names, output, strict=True))
    return type(output).__name__


def folded(rows: Sequence[tuple[str, V]]) -> Iterator[tuple[str, V]]:
    """Rows by name, in order; equal layers of a stack are listed once, as in ``layers.{3..60}.mlp``."""
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
