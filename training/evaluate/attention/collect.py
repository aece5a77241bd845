"""Collects the attention weights of every layer and head in a single forward pass, for a model of any family."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.layers.multi_head import CrossAttention

#: Matches the stack (if there are two) and the layer number in an attention module's name.
_LAYER = re.compile(r"(?:\b(encoder|decoder)\..*?)?\blayers\.(\d+)\.")


@dataclass(frozen=True)
class AttentionMap:
    """The attention weights of one attention module.

    Attributes:
        name: ``3``, or in an encoder-decoder ``encoder 3``, ``decoder 3`` or (for cross-attention) ``cross 3``.
        layer: number of the layer in its stack.
        cross: whether this is cross-attention, with keys from another sequence.
        weights_NTL: fp32 weights of each head. The weights of each query sum to 1.
    """

    name: str
    layer: int
    cross: bool
    weights_NTL: NDArray[np.float32]

    @property
    def heads(self) -> int:
        return len(self.weights_NTL)


def attentions(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the model's modules that have an ``attention_hook``, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "attention_hook")}


@torch.no_grad()
def attention_maps(
    model: torch.nn.Module, *inputs: Any, layers: Collection[int] = (), **more: Any
) -> list[AttentionMap]:
    """Run ``model(*inputs, **more)`` on a single sequence and return its attention maps, in order of computation.

    Args:
        model: the model, in evaluation mode.
        inputs: positional inputs of the forward pass, starting with token ids [1, T].
        layers: numbers of the layers to collect. Empty for all layers.
        more: keyword inputs of the forward pass.
    """
    maps: list[AttentionMap] = []
    modules = attentions(model)

    def collect(name: str, cross: bool, weights_BNTL: torch.Tensor) -> None:
        stack, layer = _place(name)
        if not layers or layer in layers:
            kind = "cross" if cross else stack
            maps.append(AttentionMap(f"{kind} {layer}".strip(), layer, cross, weights_BNTL[0].float().cpu().numpy()))

    try:
        for name, module in modules.items():
            module.attention_hook = partial(collect, name, isinstance(module, CrossAttention))  # type: ignore[assignment]
        model(*inputs, **more)
    finally:
        for module in modules.values():
            module.attention_hook = None  # type: ignore[assignment]
    return maps


def _place(name: str) -> tuple[str, int]:
    """Return the stack ("" if there is only one) and the layer number in a module's name."""
    match = _LAYER.search(name + ".")
    assert match is not None, f"{name} is not in a layer"
    return match[1] or "", int(match[2])
