"""``python -m training inspect``: lists the tensors and modules of a recipe's model with their shapes."""

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

#: Maximum number of tokens per sequence if the recipe has no train section.
_LENGTH = 16


def inspect(recipe: Recipe) -> int:
    """Print ``lines(recipe)``. Returns the exit status. No tensor memory is allocated, so any model size works."""
    print("\n".join(lines(recipe)))
    return DONE


def lines(recipe: Recipe) -> list[str]:
    """Return lines with the shapes of all tensors and module outputs, parameters and FLOPs by component, and totals.

    Parameters by component and FLOPs are left out if the recipe has no train section. Identical layers are listed once.
    The closed-form parameter count is checked against the actual model.
    """
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.vocab_size)
    counts = parameters(recipe.model, recipe.vocab_size)
    built = sum(parameter.numel() for parameter in model.parameters())
    if built != counts.all:
        raise AssertionError(f"the closed form gives {counts.all} parameters, but the model has {built}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = [f"{name:<66} {shape}" for name, shape in folded([(name, shape_of(tensor)) for name, tensor in tensors])]
    rows = [("parameters", counts.total), ("active per token", counts.active)]
    if counts.prediction:
        rows.append(("multi-token prediction, in training", counts.prediction))
    if recipe.model.has_experts:
        rows.append(("router biases", counts.router_biases))
    return [
        *shapes,
        "",
        *outputs(recipe),
        "",
        *([*estimated(recipe), ""] if recipe.train_section else []),
        *(f"{name:<36}{count:>20,}" for name, count in rows),
    ]


def outputs(recipe: Recipe) -> list[str]:
    """Return a table of every module's output shape for one sequence of the recipe's (or a default) context length."""
    train, max_seq_len = recipe.train_section, recipe.model.max_seq_len
    length = train.context_length if train else min(max_seq_len or _LENGTH, _LENGTH)
    rows = list(folded([*output_shapes(recipe.model, recipe.vocab_size, length).items()]))
    width, wide = max(len(name) for name, _ in rows), max(len(kind) for _, (kind, _) in rows)
    head = f"{'module':<{width}} {'kind':<{wide}} output for token ids 1 x {length:,}"
    return [head, *(f"{name:<{width}} {kind:<{wide}} {shape}" for name, (kind, shape) in rows)]


V = TypeVar("V")


#: Splits the name of a module or tensor in a layer stack into the stack, the layer's index and the rest.
_LAYER = re.compile(r"((?:.*\.)?layers)\.(\d+)(\..*|$)")


def output_shapes(section: ModelSection, vocab_size: int, length: int, samples: int = 1) -> dict[str, tuple[str, str]]:
    """Return the class and output shape of every module in a forward pass, by name, in the model's order.

    As in training, the pass includes the modules for multi-token prediction.

    Args:
        section: the recipe's model section.
        vocab_size: number of rows in the embedding.
        length: tokens per sequence, and per source sequence for encoder-decoder models.
        samples: number of sequences.
    """
    outputs_by_name: dict[str, tuple[str, str]] = {}

    def note(name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs_by_name[name] = type(module).__name__, shape_of(output)

    # Unlike meta tensors, fake tensors follow the CPU code path, which needs no compiled kernels.
    with FakeTensorMode(), torch.no_grad():
        model = build_model(section, vocab_size).eval()
        modules = dict(model.named_modules())
        for name, module in modules.items():
            module.register_forward_hook(partial(note, name))
            _avoid_values(module)
        _forward(model, section, torch.zeros(samples, length, dtype=torch.int64))
    # The model itself is left out, because its output is the same as its head's.
    return {name: outputs_by_name[name] for name in modules if name and name in outputs_by_name}


def _forward(model: Any, section: ModelSection, ids_BT: torch.Tensor) -> None:
    if section.task == "seq2seq":
        model(ids_BT, source=ids_BT)
    elif section.prediction_depth:
        model(ids_BT, targets=[ids_BT] * (1 + section.prediction_depth))
    else:
        model(ids_BT)


def _avoid_values(module: Any) -> None:
    """Replace a module's code that depends on tensor values, because fake tensors have no values.

    After that, experts return one row per token regardless of the routing, and heads return logits even when they are
    given labels.
    """
    if isinstance(module, Experts):
        module.forward = _row_per_token  # type: ignore[method-assign, assignment]
    elif isinstance(module, OutputHead):
        module.forward = partial(_logits, module)  # type: ignore[method-assign]


def _row_per_token(x_MD: torch.Tensor, _routing: Any) -> torch.Tensor:
    return torch.empty_like(x_MD)


def _logits(
    head: OutputHead, hidden: torch.Tensor, _labels: torch.Tensor | None = None, _per_token: bool = False
) -> torch.Tensor:
    return OutputHead.forward(head, hidden)


def shape_of(output: Any) -> str:
    """Format a tensor's shape as ``2 x 16 x 64``, or ``1`` for a scalar.

    A mapping or tuple becomes a list of its tensors' shapes, with the tensors' names if there are any.
    """
    if isinstance(output, torch.Tensor):
        return " x ".join(f"{size:,}" for size in output.shape) or "1"
    if isinstance(output, Mapping):
        return ", ".join(f"{name} {shape_of(value)}" for name, value in output.items())
    if isinstance(output, tuple):
        names = [f"{name} " for name in getattr(output, "_fields", [])] or [""] * len(output)
        return ", ".join(f"{name}{shape_of(item)}" for name, item in zip(names, output, strict=True))
    return type(output).__name__


def folded(rows: Sequence[tuple[str, V]]) -> Iterator[tuple[str, V]]:
    """Yield named rows in order, with runs of identical layers merged into one row: ``layers.{3..60}.mlp``."""
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
