"""Compares attention implementations at several lengths: how time scales with length, and whether results agree.

``eager`` materializes the full score matrix. ``full`` is the implementation used by models without a window:
PyTorch's fused kernel or, for sequences up to a certain length on CPU, blockwise matrix products. ``window`` is the
implementation used by sliding-window models: FlexAttention on GPU, blockwise attention on CPU. The cost of ``window``
grows linearly with the length.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure

from artefacts.errors import RequestError
from artefacts.pages.figures import COLORS
from configs import command
from configs.schema import Recipe
from training.compare.output import write_results
from training.layers.attention import attention, attention_weights
from training.layers.masks import Mask
from training.model_loading import best_device

#: The longest sequence as a multiple of the recipe's context length, the maximum number of scores to materialize, and
#: the number of lengths, each half of the next. If the model has no window, the window is half the shortest length.
_MAX_CONTEXTS, _MAX_SCORES, _LENGTHS = 8, 2**27, 5

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ways(scale: float, window: int) -> dict[str, Attend]:
    """Return the implementations by name. Each is a function of queries, keys and values [1, N, T, H]."""
    return {
        "eager": lambda q, k, v: attention_weights(q, k, scale, Mask(True)) @ v,
        "full": lambda q, k, v: attention(q, k, v, scale, Mask(True)),
        "window, eager": lambda q, k, v: attention_weights(q, k, scale, Mask(True, window)) @ v,
        "window": lambda q, k, v: attention(q, k, v, scale, Mask(True, window)),
    }


def compare_attention(recipe: Recipe, steps: int) -> int:
    """Print one layer's forward plus backward time in milliseconds at each length. Returns the exit status.

    ``steps`` is the number of timed passes. The fastest pass is reported.

    Raises:
        RequestError: the model has no attention.
    """
    model: Any = recipe.model.backbone_section
    if not hasattr(model, "num_attention_heads"):
        raise RequestError(f"model.family={model.family} has no attention: there is nothing to compare")
    heads, context, device = model.num_attention_heads, recipe.train.context_length, best_device(recipe)
    size = getattr(model, "head_size", 0) or model.qk_nope_head_dim + model.qk_rope_head_dim
    lengths = lengths_for(heads, context)
    window = getattr(model, "window", None) or lengths[0] // 2
    milliseconds = {
        name: [_milliseconds(way, heads, length, size, device, steps) for length in lengths]
        for name, way in ways(size**-0.5, window).items()
    }
    apart = differences(heads, lengths[-1], size, window, device)
    rows = [("attention", *(f"{length:,}" for length in lengths), "grows as", "differs by")]
    rows += [
        (name, *(f"{ms:.2f}" for ms in times), f"T^{_power(lengths, times):.1f}", f"{apart.get(name, 0.0):.1g}")
        for name, times in milliseconds.items()
    ]
    print(f"milliseconds forward and backward: {heads} heads of {size}, window {window}, on {device.type}, by length T")
    results = {
        "lengths": lengths,
        "window": window,
        "device": device.type,
        "milliseconds": milliseconds,
        "differences": apart,
    }
    write_results(recipe, "attention", rows, results, partial(_figure, lengths, milliseconds))
    return command.DONE


def lengths_for(heads: int, context: int) -> list[int]:
    """Return the lengths to compare.

    The longest is ``_MAX_CONTEXTS`` times the context length, or less if its score matrix would be too large.
    """
    most = min(_MAX_CONTEXTS * context, math.isqrt(_MAX_SCORES // heads))
    return [max(2, most >> halved) for halved in reversed(range(_LENGTHS))]


def differences(heads: int, length: int, size: int, window: int, device: torch.device) -> dict[str, float]:
    """Return each implementation's largest difference from the version that materializes the full score matrix."""
    functions, (q, k, v) = ways(size**-0.5, window), _drawn(heads, length, size, device)
    with torch.no_grad():
        return {
            name: float((functions[name](q, k, v) - functions[plain](q, k, v)).abs().max())
            for name, plain in (("full", "eager"), ("window", "window, eager"))
        }


def _drawn(heads: int, length: int, size: int, device: torch.device) -> list[torch.Tensor]:
    """Draw random queries, keys and values [1, N, T, H]."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, length, size, generator=generator).to(device) for _ in range(3)]


def _milliseconds(way: Attend, heads: int, length: int, size: int, device: torch.device, passes: int) -> float:
    """Return the time of the fastest forward plus backward pass over one sequence, excluding the first pass."""
    leaves = [tensor.requires_grad_() for tensor in _drawn(heads, length, size, device)]
    times = []
    for _ in range(passes + 1):
        began = time.perf_counter()
        total = way(*leaves).sum()
        gradients = torch.autograd.grad(total, leaves)
        float(gradients[0].sum())  # waits for the device
        times.append(time.perf_counter() - began)
    return 1000 * min(times[1:])


def _power(lengths: list[int], times: list[float]) -> float:
    """Return the exponent p such that time grew as length^p between the last two lengths."""
    return math.log(times[-1] / times[-2]) / math.log(lengths[-1] / lengths[-2])


def _figure(lengths: list[int], milliseconds: dict[str, list[float]]) -> Figure:
    figure = Figure(figsize=(8.0, 4.2))
    axes = figure.subplots()
    for (name, times), color in zip(milliseconds.items(), COLORS, strict=False):
        axes.loglog(lengths, times, "o-", color=color, label=name)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set(xlabel="length", ylabel="ms, forward and backward", title="One layer's attention of one sequence")
    axes.legend(loc="upper left")
    return figure
