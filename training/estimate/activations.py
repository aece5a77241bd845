"""Activation memory of a micro-batch: the tensors saved for the backward pass, and temporary buffers."""

from dataclasses import dataclass

from configs.schema import Recipe
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from training.block_sizes import rows_of_logits
from training.estimate import deepseek_activations, dense_activations
from training.estimate.layer import Layer
from training.estimate.topology import Topology


@dataclass(frozen=True)
class Activations:
    """A micro-batch's activation memory in bytes: per layer, for the loss (saved and temporary), and for the rest."""

    layers: list[Layer]
    loss_kept: float
    loss_working: float
    other: float

    @property
    def kept(self) -> float:
        """Memory held at the end of the forward pass, in bytes."""
        return sum(layer.kept for layer in self.layers) + self.loss_kept + self.other


def activations(recipe: Recipe, topology: Topology, micro_batch: int, mode: str) -> Activations:
    """Estimate one rank's activation memory for ``micro_batch`` samples under an activation checkpointing mode."""
    model, tokens = recipe.model.backbone_section, micro_batch * recipe.train.context_length
    if not isinstance(model, DeepseekSection):
        layers, hidden, other = dense_activations.layers(recipe, model, topology, micro_batch, mode)
        if hidden is None:
            # The bigram model's logits, which the loss holds twice in fp32.
            return Activations(layers, 8.0 * tokens * recipe.vocab_size, 4.0 * tokens * recipe.vocab_size, other)
        return Activations(layers, *_loss(recipe, topology, tokens, hidden), other)
    layers = deepseek_activations.layers(recipe, model, topology, micro_batch, mode)
    depth = model.num_nextn_predict_layers if recipe.train.mtp_loss else 0
    kept, working = _loss(recipe, topology, tokens, model.hidden_size)
    row = tokens * model.hidden_size * topology.width
    # The final norm's input and, per prediction depth, two normalized inputs, their projection, and the output norm.
    return Activations(layers, (1 + depth) * kept, working, row + depth * 5 * row + tokens * 16)


def _loss(recipe: Recipe, topology: Topology, tokens: int, hidden: int) -> tuple[float, float]:
    """Return two sizes in bytes for one head's loss: its saved tensors and its temporary buffers.

    The forward pass already computes and saves dhidden and, unless the head is frozen, dweight
    (training/layers/cross_entropy.py).
    """
    vocab = recipe.vocab_size
    if isinstance(recipe.model, ClassifierSection):
        # One vector per text and its logits: negligible compared with one vector per token.
        return 0.0, 0.0
    rows = rows_of_logits(topology.device, tokens, vocab)
    working = rows * vocab * (6 if topology.half else 4)
    if not topology.trains_head:
        return tokens * hidden * topology.width, working
    if topology.half:
        # The fp32 sum of dweight, one chunk's product, and that product's fp32 copy.
        working += vocab * hidden * (4 + 2 + 4) - vocab * hidden * topology.width
    return (tokens + vocab) * hidden * topology.width, working
