"""Base classes for layers and stacks. Each layer applies activation checkpointing and ``torch.compile`` to itself."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from training.layers.activation_checkpointing import ActivationCheckpointing, checkpointed

#: Maps the residual stream [B, T, D] -> [B, T, D].
Sublayer = Callable[[torch.Tensor], torch.Tensor]


class Layer(nn.Module):
    """A layer of a stack. ``activation_checkpointing`` sets what the layer saves for the backward pass in training."""

    activation_checkpointing: ActivationCheckpointing = "none"

    def apply_sublayers(self, x_BTD: torch.Tensor, *sublayers: Sublayer) -> torch.Tensor:
        """Apply sublayers in order, under activation checkpointing in training.

        ``full`` checkpoints all of them at once, and ``selective`` each one separately.
        """
        mode = self.activation_checkpointing if self.training else "none"
        if mode == "full":
            return checkpointed(partial(_in_order, sublayers), mode, x_BTD)
        for sublayer in sublayers:
            x_BTD = checkpointed(sublayer, mode, x_BTD)
        return x_BTD

    def compile_regions(self) -> None:
        """Compile the layer's regions that have no graph breaks."""
        raise NotImplementedError


def _in_order(sublayers: Sequence[Sublayer], x_BTD: torch.Tensor) -> torch.Tensor:
    for sublayer in sublayers:
        x_BTD = sublayer(x_BTD)
    return x_BTD


class LayerStack(nn.Module):
    """A stack of layers, or a model that contains stacks. If there are no layers, its methods do nothing."""

    @property
    def blocks(self) -> list[Any]:
        """All layers, in construction order."""
        return [module for module in self.modules() if isinstance(module, Layer)]

    def set_activation_checkpointing(self, mode: ActivationCheckpointing) -> None:
        """Set what each layer saves in training (see :mod:`training.layers.activation_checkpointing`)."""
        for layer in self.blocks:
            layer.activation_checkpointing = mode

    def compile_regions(self) -> None:
        """Compile every layer's regions that have no graph breaks."""
        for layer in self.blocks:
            layer.compile_regions()
