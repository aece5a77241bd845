"""How many parameters a DeepSeek model has, and how many of them act on one token."""

from dataclasses import dataclass

from configs.schema.model import ModelSection


@dataclass(frozen=True)
class Parameters:
    """Counts of trained numbers. The gate's balancing bias is a buffer, not a parameter, and is not counted.

    ``total``: every one, tied embeddings once. ``active``: those that a token is multiplied by, which is how DeepSeek
    states its 37B (V3) and 2.4B (V2-Lite): K of the E routed experts, the shared experts, and the output head; but not
    the input embedding, of which a token reads one row. (With tied embeddings the shared matrix counts as the head.)
    ``by_part`` sums to ``total``, ``active_by_part`` to ``active``.
    """

    by_part: dict[str, int]
    active_by_part: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_part.values())

    @property
    def active(self) -> int:
        return sum(self.active_by_part.values())


def parameters(model: ModelSection, vocab_size: int) -> Parameters:
    """Count by part for a model whose embedding and head have ``vocab_size`` rows."""
    hidden, layers = model.hidden_size, model.num_hidden_layers
    mixtures = layers - model.first_k_dense_replace
    expert = 3 * hidden * model.moe_intermediate_size
    matrix = vocab_size * hidden
    by_part = {
        "embedding": 0 if model.tie_word_embeddings else matrix,
        "attention": layers * attention_matrices(model),
        "dense feed-forward": model.first_k_dense_replace * 3 * hidden * model.intermediate_size,
        "gates": mixtures * model.n_routed_experts * hidden,
        "shared experts": mixtures * model.n_shared_experts * expert,
        "routed experts": mixtures * model.n_routed_experts * expert,
        "norms": layers * (2 * hidden + model.kv_lora_rank + (model.q_lora_rank or 0)) + hidden,
        "head": matrix,
    }
    selected = mixtures * model.num_experts_per_tok * expert
    return Parameters(by_part, {**by_part, "embedding": 0, "routed experts": selected})


def attention_matrices(model: ModelSection) -> int:
    """Parameters in the projections of one latent-attention layer, without its norms."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    query = heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)
    rank = model.q_lora_rank
    queries = hidden * query if rank is None else rank * (hidden + query)
    latent = hidden * (model.kv_lora_rank + model.qk_rope_head_dim)
    expanded = model.kv_lora_rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    return queries + latent + expanded + heads * model.v_head_dim * hidden
