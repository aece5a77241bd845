"""Base classes for layers and stacks. Each layer applies activation checkpointing and ``torch.compile`` to itself."""

from typing import Any

from torch import nn

from training.layers.activation_checkpointing import ActivationCheckpointing


class Layer(nn.Module):
    """A layer of a stack. ``activation_checkpointing`` sets what the layer saves for the backward pass in training."""

    activation_checkpointing: ActivationCheckpointing = "none"

    def compile_regions(self) -> None:
        """Compile the layer's regions that have no graph breaks."""
        raise NotImplementedError


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
