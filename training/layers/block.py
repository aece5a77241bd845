"""What models of layers have in common: every layer checkpoints and compiles for itself."""

from typing import Any

from torch import nn

from training.layers.activation_checkpointing import Checkpointing


class Layer(nn.Module):
    """A layer of a stack; ``checkpointing``: what it keeps in training for the backward pass."""

    checkpointing: Checkpointing = "none"

    def compile_regions(self) -> None:
        """Compile what compiles without graph breaks."""
        raise NotImplementedError


class Layered(nn.Module):
    """A stack or a model with stacks in it; of one without layers the methods do nothing."""

    @property
    def blocks(self) -> list[Any]:
        """Every layer, in the order in which they were made."""
        return [module for module in self.modules() if isinstance(module, Layer)]

    def set_checkpointing(self, mode: Checkpointing) -> None:
        """What the layers keep in training, see :mod:`training.layers.activation_checkpointing`."""
        for layer in self.blocks:
            layer.checkpointing = mode

    def compile_regions(self) -> None:
        """Compile of every layer what compiles without graph breaks."""
        for layer in self.blocks:
            layer.compile_regions()
