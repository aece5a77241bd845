"""Import of multi-token prediction layers. A model directory may have more or fewer of them than the recipe.

On disk, prediction layers come after the main model's last layer. transformers drops their weights when it loads a
model, so models that it saves have none, even though ``config.json`` still counts these layers.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artefacts.errors import RequestError
from configs.schema.models import ModelSection

_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
#: A tensor that only prediction layers have.
_MARK = "eh_proj.weight"


@dataclass(frozen=True)
class PredictionLayers:
    """The layer numbers of the prediction layers to skip and of the new ones to initialize.

    Attributes:
        left_out: layers on disk that the recipe does not have.
        new: layers in the recipe that are not on disk.
    """

    left_out: frozenset[int]
    new: tuple[int, ...]

    @classmethod
    def of(cls, section: ModelSection, names: Collection[str], folder: Path) -> "PredictionLayers":
        """Compare the recipe's model with the tensor names in a directory.

        Raises:
            RequestError: the directory lacks layers that the recipe has, and ``model.new_prediction_layers`` is not
                set.
        """
        depth, layers = section.prediction_depth, section.identity()["num_hidden_layers"]
        marked = {int(match[1]) for name in names if name.endswith(_MARK) and (match := _LAYER.match(name))}
        present = {int(match[1]) for name in names if (match := _LAYER.match(name))}
        new = tuple(layer for layer in range(layers, layers + depth) if layer not in present)
        if new and not getattr(section, "new_prediction_layers", False):
            raise RequestError(
                f"{folder} has no weights of model.layers.{new[0]}, a prediction layer, but the recipe has "
                f"model.num_nextn_predict_layers={depth}: set it to {depth - len(new)}, or start the missing layers "
                "from random values with model.new_prediction_layers=true"
            )
        return cls(frozenset(layer for layer in marked if layer >= layers + depth), new)

    def kept(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the on-disk weights, except for the weights of skipped layers."""
        for name, tensor in weights:
            if self._layer(name) not in self.left_out:
                yield name, tensor

    def new_weights(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the parameters and buffers of the new layers, taken from an initialized model."""
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if self._layer(name) in self.new:
                yield name, tensor

    def report(self, config: dict[str, Any], section: ModelSection) -> list[str]:
        """Return lines that report which layers were skipped or newly initialized."""
        depth, theirs = section.prediction_depth, config.get("num_nextn_predict_layers") or 0
        lines = []
        if theirs > depth or self.left_out:
            lines.append(
                f"num_nextn_predict_layers is {theirs} in config.json and {depth} in the recipe: "
                f"{_count(max(len(self.left_out), theirs - depth))} not imported"
            )
        if self.new:
            lines.append(f"{_count(len(self.new))} not in the directory: initialized from run.seed")
        return lines

    @staticmethod
    def _layer(name: str) -> int | None:
        return int(match[1]) if (match := _LAYER.match(name)) else None


def _count(number: int) -> str:
    return "1 prediction layer is" if number == 1 else f"{number} prediction layers are"
