"""What a micro-batch's forward pass keeps for its backward pass, and what both work in.

Counts follow the tensors that autograd saves (``tests/training/test_estimate_memory.py`` counts them in a built model).
M tokens of a micro-batch, D hidden size, K experts a token; routing is taken as balanced, so that a rank receives as
many rows as it sends, M x K.
"""

from dataclasses import dataclass

from configs.schema import Recipe
from training.estimate.topology import Topology

#: training/layers/attention.py: rows of queries at a time, and the longest span whose weights are kept.
_BLOCK, _LONGEST_BLOCKED = 128, 2048
#: training/losses.py: logits at a time, and the fewest rows.
_CHUNK, _FEWEST_ROWS = {"cpu": 2**22, "cuda": 2**27}, 128
#: deepspeed/moe/ep_kernels.py: each expert's rows are filled up to a multiple of this, and room is made for all to be.
_ALIGNED = 8


@dataclass(frozen=True)
class Layer:
    """Bytes of one layer: kept from forward to backward, and what computing it takes on top at its highest."""

    kept: float
    forward: float
    backward: float


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
    model, train = recipe.model, recipe.train
    tokens, hidden = micro_batch * train.context_length, model.hidden_size
    depth = model.num_nextn_predict_layers if train.mtp_loss else 0
    layers = [
        _layer(recipe, place, micro_batch, mode, index < model.first_k_dense_replace)
        for index in range(model.num_hidden_layers + depth)
    ]
    vocab, row = recipe.vocab_size, tokens * hidden * place.width
    heads = 1 + depth
    # dhidden and dweight are worked out in the forward pass (training/losses.py) and kept for the backward pass.
    kept = heads * (row + vocab * hidden * place.width)
    rows = min(tokens, max(_FEWEST_ROWS, _CHUNK[place.device] // vocab))
    working = rows * vocab * (6 if place.half else 4)
    if place.half:
        # The sum of dweight in fp32 beside the piece's product, and that product widened to be added.
        working += vocab * hidden * (4 + 2 + 4) - vocab * hidden * place.width
    # The final norm's input; each depth of prediction: the normalised pair, its projection's result and the norm's.
    return Activations(layers, kept, working, row + depth * 5 * row + tokens * 16)


def _layer(recipe: Recipe, place: Topology, micro_batch: int, mode: str, dense: bool) -> Layer:
    attention, fused = _attention(recipe, place, micro_batch)
    feed, feed_working = _feed_forward(recipe, place, micro_batch, dense)
    row = hidden = micro_batch * recipe.train.context_length * recipe.model.hidden_size * place.width
    whole = attention + feed
    if mode == "none":
        return Layer(whole, feed_working / 2, feed_working)
    model = recipe.model
    # Routing is not decided twice (training/layers/routing.py): logits, and the best with their scores.
    decisions = 0 if dense else model.n_routed_experts * 4 + model.num_experts_per_tok * 12
    row += micro_batch * recipe.train.context_length * decisions
    if mode == "full":
        # The layer's input stays; all the rest is computed again, and lies there while its gradients are.
        return Layer(row, max(attention, feed) / 2, whole - row + feed_working)
    narrow = row + hidden + fused + _narrow(recipe, place, micro_batch, dense)
    return Layer(narrow, max(attention, feed) / 2, max(attention, feed) - row + feed_working)


def _narrow(recipe: Recipe, place: Topology, micro_batch: int, dense: bool) -> float:
    """What ``selective`` keeps of products narrower than the hidden size (training/layers/checkpointing.py)."""
    model = recipe.model
    widths = [model.q_lora_rank or 0, model.kv_lora_rank + model.qk_rope_head_dim]
    if dense:
        widths += 2 * [model.intermediate_size]
    else:
        widths += 2 * [model.n_shared_experts * model.moe_intermediate_size]
    numbers = sum(width for width in widths if width < model.hidden_size)
    return micro_batch * recipe.train.context_length * numbers * place.width


def _attention(recipe: Recipe, place: Topology, micro_batch: int) -> tuple[float, float]:
    """Kept by attention and its norm (training/layers/mla.py); and a fused kernel's results, which ``selective`` keeps.

    Numbers a token: the layer's input and its norm, the latents before and after their norms, queries and keys [N, Q],
    values and the result [N, Z], the residual stream. On CPU the softmax's weights of blocks of 128 queries with all
    keys up to their last.
    """
    model, length, width = recipe.model, recipe.train.context_length, place.width
    tokens, heads = micro_batch * length, model.num_attention_heads
    query, value = model.qk_nope_head_dim + model.qk_rope_head_dim, model.v_head_dim
    latents = model.kv_lora_rank + model.qk_rope_head_dim + (model.q_lora_rank or 0)
    numbers = 2 * model.hidden_size + latents + model.kv_lora_rank + (model.q_lora_rank or 0)
    blocked = place.device == "cpu" and length <= _LONGEST_BLOCKED
    values = value if place.device == "cpu" else model.qk_nope_head_dim + value
    if place.device == "cpu" and not blocked:
        values = query  # padded for PyTorch's kernel, and its result is as wide
    result = value if blocked or place.device == "cuda" else value + query
    numbers += heads * (2 * query + values + result)
    weights = 0
    if blocked:
        spans = [min(start + _BLOCK, length) - start for start in range(0, length, _BLOCK)]
        weights = micro_batch * heads * sum(span * min((i + 1) * _BLOCK, length) for i, span in enumerate(spans))
    fused = 0 if blocked else tokens * heads * (result * width + 4)
    return (tokens * numbers + weights) * width, fused


def _feed_forward(recipe: Recipe, place: Topology, micro_batch: int, dense: bool) -> tuple[float, float]:
    """Kept by a feed-forward layer or mixture and its norm, and what its backward pass works in on top."""
    model, width = recipe.model, place.width
    tokens, hidden = micro_batch * recipe.train.context_length, model.hidden_size
    # Gate, up and their product; on GPUs PyTorch keeps silu(gate) too.
    columns = 3 if place.device == "cpu" else 4
    residual = 2 * tokens * hidden * width
    if dense:
        wide = tokens * model.intermediate_size * width
        return residual + columns * wide, 2 * wide
    local = place.local_experts // max(1, place.expert_layers)
    rows = tokens * model.num_experts_per_tok
    filled = rows + local // (3 * hidden * model.moe_intermediate_size) * _ALIGNED
    # AutoEP (deepspeed/moe/ep_experts.py) joins gate and up weights anew in each pass, and keeps them.
    joined = local * 2 / 3 * width
    inner = 4 if place.device == "cpu" else 3  # gate and up, silu on CPU, their product
    shared = columns * tokens * model.n_shared_experts * model.moe_intermediate_size * width
    kept = (
        residual + shared + joined + width * (filled * (hidden + inner * model.moe_intermediate_size) + rows * hidden)
    )
    kept += tokens * hidden * (4 if place.half else 0)  # the gate's input in fp32
    kept += tokens * (model.n_routed_experts * 4 + model.num_experts_per_tok * 32)
    # Weighted rows and their gradients in fp32, and the joined weights' gradient beside its two parts.
    return kept, 2 * rows * hidden * 4 + local * width
