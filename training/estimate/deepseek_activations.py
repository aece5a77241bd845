"""Activation memory of DeepSeek layers: the tensors that the forward pass saves, and temporary buffers.

The formulas follow the tensors that autograd saves (``tests/training/estimate/test_memory.py`` counts these in a real
model). Routing is assumed to be balanced: with M tokens in a micro-batch and K experts per token, a rank receives as
many rows as it sends, M x K.
"""

from configs.schema import Recipe
from configs.schema.models.deepseek import DeepseekSection
from training.block_sizes import LONGEST_BLOCKED
from training.estimate.layer import Layer, block_weights
from training.estimate.topology import Topology

#: deepspeed/moe/ep_kernels.py pads each expert's rows to a multiple of this, and reserves room for all of the padding.
_ALIGNED = 8


def layers(recipe: Recipe, model: DeepseekSection, topology: Topology, micro_batch: int, mode: str) -> list[Layer]:
    """Estimate the memory of every trained layer under an activation checkpointing mode."""
    depth = model.num_nextn_predict_layers if recipe.train.mtp_loss else 0
    kinds = {dense: _layer(recipe, model, topology, micro_batch, mode, dense) for dense in (True, False)}
    return [kinds[index < model.first_k_dense_replace] for index in range(model.num_hidden_layers + depth)]


def _layer(
    recipe: Recipe, model: DeepseekSection, topology: Topology, micro_batch: int, mode: str, dense: bool
) -> Layer:
    attention, fused = _attention(recipe, model, topology, micro_batch)
    feed, feed_working = _feed_forward(recipe, model, topology, micro_batch, dense)
    row = hidden = micro_batch * recipe.train.context_length * model.hidden_size * topology.width
    total = attention + feed
    if mode == "none":
        return Layer(total, feed_working / 2, feed_working)
    # Routing decisions are saved (training/layers/router.py): the logits, and the top experts' ids and scores.
    decisions = 0 if dense else model.n_routed_experts * 4 + model.num_experts_per_tok * 12
    row += micro_batch * recipe.train.context_length * decisions
    if mode == "full":
        # Only the layer's input is saved. The rest is recomputed and held while gradients are computed.
        return Layer(row, max(attention, feed) / 2, total - row + feed_working)
    narrow = row + hidden + fused + _narrow(recipe, model, topology, micro_batch, dense)
    return Layer(narrow, max(attention, feed) / 2, max(attention, feed) - row + feed_working)


def _narrow(recipe: Recipe, model: DeepseekSection, topology: Topology, micro_batch: int, dense: bool) -> float:
    """Return the size in bytes of matrix products narrower than the hidden size, which ``selective`` saves."""
    widths = [model.q_lora_rank or 0, model.kv_lora_rank + model.qk_rope_head_dim]
    if dense:
        widths += 2 * [model.intermediate_size]
    else:
        widths += 2 * [model.n_shared_experts * model.moe_intermediate_size]
    numbers = sum(width for width in widths if width < model.hidden_size)
    return micro_batch * recipe.train.context_length * numbers * topology.width


def _attention(recipe: Recipe, model: DeepseekSection, topology: Topology, micro_batch: int) -> tuple[float, float]:
    """Return how many bytes attention and its norm save (training/layers/mla.py), and how many a fused kernel saves.

    The saved tensors are the layer's input before and after its norm, the latents before and after their norms, queries
    and keys [N, Q], values and the result [N, Z] and, in blocked attention on CPU, the attention weights. ``selective``
    saves a fused kernel's results but recomputes blocked attention.
    """
    length, width = recipe.train.context_length, topology.width
    tokens, heads = micro_batch * length, model.num_attention_heads
    query, value = model.qk_nope_head_dim + model.qk_rope_head_dim, model.v_head_dim
    latents = model.kv_lora_rank + model.qk_rope_head_dim + (model.q_lora_rank or 0)
    numbers = 2 * model.hidden_size + latents + model.kv_lora_rank + (model.q_lora_rank or 0)
    blocked = topology.device == "cpu" and length <= LONGEST_BLOCKED
    values = value if topology.device == "cpu" else model.qk_nope_head_dim + value
    if topology.device == "cpu" and not blocked:
        values = query  # padded for PyTorch's kernel, whose result has the same width
    result = value if blocked or topology.device == "cuda" else value + query
    numbers += heads * (2 * query + values + result)
    weights = 0
    if blocked:
        weights = micro_batch * heads * block_weights(length)
    fused = 0 if blocked else tokens * heads * (result * width + 4)
    return (tokens * numbers + weights) * width, fused


def _feed_forward(
    recipe: Recipe, model: DeepseekSection, topology: Topology, micro_batch: int, dense: bool
) -> tuple[float, float]:
    """Return two sizes in bytes for a feed-forward or MoE layer and its norm: saved tensors, and backward buffers."""
    width = topology.width
    tokens, hidden = micro_batch * recipe.train.context_length, model.hidden_size
    # Gate, up and their product. On GPUs, PyTorch also saves silu(gate).
    columns = 3 if topology.device == "cpu" else 4
    residual = 2 * tokens * hidden * width
    if dense:
        wide = tokens * model.intermediate_size * width
        return residual + columns * wide, 2 * wide
    local = topology.local_experts // max(1, topology.expert_layers)
    rows = tokens * model.num_experts_per_tok
    padded = rows + local // (3 * hidden * model.moe_intermediate_size) * _ALIGNED
    # AutoEP (deepspeed/moe/ep_experts.py) concatenates gate and up weights in each pass, and saves the result.
    joined = local * 2 / 3 * width
    inner = 4 if topology.device == "cpu" else 3  # gate and up, silu (on CPU), and the product
    shared = columns * tokens * model.n_shared_experts * model.moe_intermediate_size * width
    kept = (
        residual + shared + joined + width * (padded * (hidden + inner * model.moe_intermediate_size) + rows * hidden)
    )
    kept += tokens * hidden * (4 if topology.half else 0)  # the gate's input in fp32
    kept += tokens * (model.n_routed_experts * 4 + model.num_experts_per_tok * 32)
    # The weighted rows and their gradients in fp32, and the gradient of the joined weights along with its two parts.
    return kept, 2 * rows * hidden * 4 + local * width
