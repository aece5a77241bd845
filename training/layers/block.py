"""Layers of a stack, each of which applies activation checkpointing and ``torch.compile`` to itself."""

from typing import Any

from torch import nn

from training.layers.activation_checkpointing import ActivationCheckpointing


class Layer(nn.Module):
    """A layer of a stack. ``activation_checkpointing``: what it keeps in training for the backward pass."""

    activation_checkpointing: ActivationCheckpointing = "none"

    def compile_regions(self) -> None:
        """Compile the parts that compile without graph breaks."""
        raise NotImplementedError


class LayerStack(nn.Module):
    """A stack of layers, or a model that contains stacks. Without layers its methods do nothing."""

    @property
    def blocks(self) -> list[Any]:
        """Every layer, in the order of construction."""
        return [module for module in self.modules() if isinstance(module, Layer)]

    def set_activation_checkpointing(self, mode: ActivationCheckpointing) -> None:
        """Set what layers keep in training, see :mod:`training.layers.activation_checkpointing`."""
        for layer in self.blocks:
            layer.activation_checkpointing = mode

    def compile_regions(self) -> None:
        """Compile the parts of every layer that compile without graph breaks."""
        for layer in self.blocks:
            layer.compile_regions()
