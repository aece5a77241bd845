"""Activation memory of dense layers: the tensors that the forward pass saves, and temporary buffers.

The formulas follow the tensors that autograd saves (``tests/training/estimate/test_memory.py`` counts these in a real
model).
"""

from configs.schema import Recipe
from configs.schema.models import ModelSection
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from configs.schema.models.transformer import TransformerSection
from training.block_sizes import LONGEST_BLOCKED
from training.estimate.layer import Layer, block_weights
from training.estimate.topology import Topology


def layers(
    recipe: Recipe, model: ModelSection, topology: Topology, micro_batch: int, mode: str
) -> tuple[list[Layer], int | None, float]:
    """Estimate the memory of every layer under an activation checkpointing mode.

    Returns each layer's memory, the width of the head's input (None if that input is already logits), and the size in
    bytes of all other activations.
    """
    length = recipe.train.context_length
    tokens = micro_batch * length
    if not isinstance(model, TransformerSection):
        return [], None, tokens * 8.0
    looks_ahead = model.task != "language_modeling"
    separate = recipe.train.mask_documents
    stack = [
        _layer(model, topology, micro_batch, length, mode, looks_ahead, separate=separate)
    ] * model.num_hidden_layers
    row = tokens * model.hidden_size * topology.width
    # The final norm's input (post-norm stacks have none) and, with dropout, the embedding's dropout mask.
    other = (row if getattr(model, "norm_first", True) else 0) + (row if model.dropout else 0) + tokens * 16.0
    if isinstance(model, EncoderDecoderSection):
        stack = stack + [_layer(model, topology, micro_batch, length, mode, False, True)] * model.depth_of_decoder
        # The encoder's output, which is passed to every decoder layer.
        other += other + row / model.cross_downsample
    return stack, model.hidden_size, other


def _layer(
    model: TransformerSection,
    topology: Topology,
    micro_batch: int,
    length: int,
    mode: str,
    looks_ahead: bool,
    cross: bool = False,
    separate: bool = False,
) -> Layer:
    tokens = micro_batch * length
    row = tokens * model.hidden_size * topology.width
    dropped = row if model.dropout else 0
    # The residual stream and its norm; queries, keys and values; the attention result; the dropout mask.
    ahead = length if looks_ahead else None
    attention = 6 * row + dropped + _weights(model, topology, micro_batch, length, ahead, separate=separate)
    if cross:
        kept = -(-length // model.cross_downsample) if isinstance(model, EncoderDecoderSection) else length
        encoded = micro_batch * kept * model.hidden_size * topology.width
        attention += 4 * row + dropped + 2 * encoded + _weights(model, topology, micro_batch, length, kept, full=True)
    columns = {"relu": 1, "gelu": 2, "gelu_new": 2, "swiglu": 3 if topology.device == "cpu" else 4}[model.activation]
    wide = tokens * model.width * topology.width
    feed = 2 * row + dropped + columns * wide
    total = attention + feed
    if mode == "none":
        return Layer(total, wide, 2 * wide)
    if mode == "full":
        return Layer(row, max(attention, feed) / 2, total - row + 2 * wide)
    between = (3 if cross else 2) * row
    return Layer(between, max(attention, feed) / 2, max(attention, feed) - row + 2 * wide)


def _weights(
    model: TransformerSection,
    topology: Topology,
    micro_batch: int,
    length: int,
    keys: int | None,
    full: bool = False,
    separate: bool = False,
) -> float:
    """Return the size in bytes of attention weights, or of the statistics and masks that fused attention saves instead.

    If ``full``, the window does not apply. If ``separate``, tokens attend only within their own document.
    """
    window = None if full else model.window
    if topology.device == "cuda" or (window is None and length > LONGEST_BLOCKED):
        kept = micro_batch * length * model.num_attention_heads * 4.0
        sloped = model.positions == "alibi" and not full
        blocks = window is not None or separate
        if (sloped and not blocks) or (model.dropout and (sloped or blocks)):
            # A mask over all pairs of positions: per head if slopes differ, per sample if samples differ.
            masks = (model.num_attention_heads if sloped else 1) * (micro_batch if keys is not None or separate else 1)
            kept += masks * length * (keys or length) * topology.width
        return kept
    count = micro_batch * model.num_attention_heads * block_weights(length, keys, window)
    # Dropout saves a mask of one byte per weight.
    return count * (topology.width + (1.0 if model.dropout else 0.0))
