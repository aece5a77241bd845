"""The attention weights of one forward pass, of every layer and head of a model of any family."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.layers.multi_head import CrossAttention

#: A layer's number in the name of its attention, and in which of two stacks it stands.
_LAYER = re.compile(r"(?:\b(encoder|decoder)\..*?)?\blayers\.(\d+)\.")


@dataclass(frozen=True)
class AttentionMap:
    """What one attention of one layer gave.

    Attributes:
        name: ``3``; of a model of two stacks ``encoder 3`` or ``decoder 3``; of cross-attention ``cross 3``.
        layer: number of the layer in its stack.
        cross: whether the keys are another sequence's.
        weights_NTL: each head's, fp32; a query's sum to 1.
    """

    name: str
    layer: int
    cross: bool
    weights_NTL: NDArray[np.float32]

    @property
    def heads(self) -> int:
        return len(self.weights_NTL)


def attentions(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules of a model that tell their weights to a ``attention_hook``, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "attention_hook")}


@torch.no_grad()
def attention_maps(
    model: torch.nn.Module, *inputs: Any, layers: Collection[int] = (), **more: Any
) -> list[AttentionMap]:
    """The maps of ``model(*inputs, **more)`` for a single sequence, in the order in which the layers ran.

    Args:
        model: in evaluation mode.
        inputs: of its forward pass, token ids [1, T] first.
        layers: numbers of those that are wanted; empty: all.
        more: likewise.
    """
    found: list[AttentionMap] = []
    listening = attentions(model)

    def hear(name: str, cross: bool, weights_BNTL: torch.Tensor) -> None:
        stack, layer = _place(name)
        if not layers or layer in layers:
            called = "cross" if cross else stack
            found.append(AttentionMap(f"{called} {layer}".strip(), layer, cross, weights_BNTL[0].float().cpu().numpy()))

    try:
        for name, module in listening.items():
            module.attention_hook = partial(hear, name, isinstance(module, CrossAttention))  # type: ignore[assignment]
        model(*inputs, **more)
    finally:
        for module in listening.values():
            module.attention_hook = None  # type: ignore[assignment]
    return found


def _place(name: str) -> tuple[str, int]:
    """Stack (empty: there is one) and number of a layer by the name of a module in it."""
    match = _LAYER.search(name + ".")
    assert match is not None, f"{name} is in no layer"
    return match[1] or "", int(match[2])
