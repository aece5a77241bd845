"""What a micro-batch's forward pass keeps for its backward pass, and what both work in."""

from dataclasses import dataclass

from configs.schema import Recipe
from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate import deepseek_activations, dense_activations
from training.estimate.layer import Layer
from training.estimate.topology import Topology
from training.layers.block_sizes import rows_of_logits


@dataclass(frozen=True)
class Activations:
    """Bytes over a micro-batch: each layer's, of the loss what is kept and what it works in, the rest."""

    layers: list[Layer]
    loss_kept: float
    loss_working: float
    other: float

    @property
    def kept(self) -> float:
        """What there is at the end of the forward pass."""
        return sum(layer.kept for layer in self.layers) + self.loss_kept + self.other


def activations(recipe: Recipe, place: Topology, micro_batch: int, mode: str) -> Activations:
    """Of a rank that computes so many samples at a time under a checkpointing mode."""
    model, tokens = recipe.model.backbone_section, micro_batch * recipe.train.context_length
    if not isinstance(model, DeepseekSection):
        layers, hidden, other = dense_activations.layers(recipe, model, place, micro_batch, mode)
        if hidden is None:
            # The bigram's logits, in fp32 twice in the loss.
            return Activations(layers, 8.0 * tokens * recipe.vocab_size, 4.0 * tokens * recipe.vocab_size, other)
        return Activations(layers, *_loss(recipe, place, tokens, hidden), other)
    layers = deepseek_activations.layers(recipe, model, place, micro_batch, mode)
    depth = model.num_nextn_predict_layers if recipe.train.mtp_loss else 0
    kept, working = _loss(recipe, place, tokens, model.hidden_size)
    row = tokens * model.hidden_size * place.width
    # The final norm's input; each depth of prediction: the normalised pair, its projection's result and the norm's.
    return Activations(layers, (1 + depth) * kept, working, row + depth * 5 * row + tokens * 16)


def _loss(recipe: Recipe, place: Topology, tokens: int, hidden: int) -> tuple[float, float]:
    """What one head's loss keeps and works in.

    dhidden and dweight are computed in the forward pass (training/layers/cross_entropy.py) and kept for the backward
    pass.
    """
    vocab = recipe.vocab_size
    if isinstance(recipe.model, ClassifierSection):
        # A vector and logits for a text, which is little beside its tokens.
        return 0.0, 0.0
    rows = rows_of_logits(place.device, tokens, vocab)
    working = rows * vocab * (6 if place.half else 4)
    if place.half:
        # The sum of dweight in fp32 beside the piece's product, and that product widened to be added.
        working += vocab * hidden * (4 + 2 + 4) - vocab * hidden * place.width
    return (tokens + vocab) * hidden * place.width, working
