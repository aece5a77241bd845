"""Compares activation functions: plots of the functions and their derivatives, and a short training run with each."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from artefacts import atomic
from artefacts.pages.figures import COLORS, png
from configs import command
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.models.transformer import Activation
from training.compare.output import as_json, losses, write_results
from training.compare.trial import Setting, Trial, run_data, trial
from training.estimate.parameters import parameters
from training.layers.feed_forward import ACTIVATIONS
from training.model_loading import best_device

#: Functions to plot: the activations that a recipe can select, and SiLU, which SwiGLU uses.
FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {**ACTIVATIONS, "silu": F.silu}
#: Plots range from -_REACH to _REACH, with _POINTS points.
_REACH, _POINTS = 4.0, 401


def compare_activations(recipe: Recipe, steps: int) -> int:
    """Plot the functions and, if ``model.activation`` exists, train with each activation. Returns the exit status."""
    picture = RunLayout.of(recipe).comparisons / "activation-functions.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(picture, png(functions_figure))
    print(picture)
    model: Any = recipe.model
    if not hasattr(model, "activation"):
        print(f"model.family={model.family} has no model.activation: there is nothing to train and compare")
        return command.DONE
    data, trials, counts = run_data(recipe), {}, {}
    for name in get_args(Activation):
        changed = recipe.model_copy(update={"model_section": model.model_copy(update={"activation": name})})
        counts[name] = parameters(changed.model, recipe.vocab_size).total
        trials[name] = trial(changed, data, Setting(steps, best_device(recipe)), name)
    write_results(
        recipe, "activations", _rows(trials, counts), _results(trials, counts), losses("By activation", trials)
    )
    return command.DONE


def _rows(trials: Mapping[str, Trial], counts: Mapping[str, int]) -> list[tuple[str, ...]]:
    head = ("activation", "parameters", "final loss", "ms per step")
    return [
        head,
        *(
            (name, f"{counts[name]:,}", f"{trial.final:.4f}", f"{1000 * trial.step_seconds:.1f}")
            for name, trial in trials.items()
        ),
    ]


def _results(trials: Mapping[str, Trial], counts: Mapping[str, int]) -> dict[str, Any]:
    return {name: {"parameters": counts[name], **as_json(trial)} for name, trial in trials.items()}


def values_and_slopes(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return sample points [n], and a function's values and derivatives (by autograd) at these points."""
    x = torch.linspace(-_REACH, _REACH, _POINTS, requires_grad=True)
    y = FUNCTIONS[name](x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return x.detach(), y.detach(), slope


def functions_figure() -> Figure:
    """Plot all functions, with their derivatives next to them."""
    figure = Figure(figsize=(9.0, 3.8))
    left, right = figure.subplots(1, 2)
    for name, color, style in zip(FUNCTIONS, COLORS, ("-", "-", "--", "-"), strict=False):
        x, y, slope = values_and_slopes(name)
        left.plot(x, y, style, color=color, label=name)
        right.plot(x, slope, style, color=color, label=name)
    left.set(title="Activation", xlabel="x")
    right.set(title="Derivative", xlabel="x")
    left.legend(loc="upper left")
    return figure
