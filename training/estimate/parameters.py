"""How many parameters a DeepSeek model has, and how many of them act on one token."""

from dataclasses import dataclass

from configs.schema.model import ModelSection


@dataclass(frozen=True)
class Parameters:
    """Counts of trained numbers. The gates' balancing biases are buffers, not parameters: ``router_biases`` counts the
    main model's.

    ``total``: every one of the main model, tied embeddings once. ``active``: those that a token is multiplied by, which
    is how DeepSeek states its 37B (V3) and 2.4B (V2-Lite): K of the E routed experts, the shared experts, and the
    output head; but not the input embedding, of which a token reads one row. (With tied embeddings the shared matrix
    counts as the head.) ``by_part`` sums to ``total``, ``active_by_part`` to ``active``.

    ``prediction`` and ``active_prediction``: what the modules of multi-token prediction add in training, which share
    embedding and head and which plain generation leaves out; ``all``: with them.
    """

    by_part: dict[str, int]
    active_by_part: dict[str, int]
    prediction: int
    active_prediction: int
    router_biases: int

    @property
    def total(self) -> int:
        return sum(self.by_part.values())

    @property
    def active(self) -> int:
        return sum(self.active_by_part.values())

    @property
    def all(self) -> int:
        return self.total + self.prediction


def parameters(model: ModelSection, vocab_size: int) -> Parameters:
    """Count by part for a model whose embedding and head have ``vocab_size`` rows."""
    hidden, layers = model.hidden_size, model.num_hidden_layers
    dense = model.first_k_dense_replace
    matrix = vocab_size * hidden
    layer = {part: layers * count for part, count in _layer(model).items()}
    mixture = {part: (layers - dense) * count for part, count in _mixture(model).items()}
    by_part = {
        "embedding": 0 if model.tie_word_embeddings else matrix,
        "attention": layer["attention"],
        "dense feed-forward": dense * 3 * hidden * model.intermediate_size,
        "gates": mixture["gates"],
        "shared experts": mixture["shared experts"],
        "routed experts": mixture["routed experts"],
        "norms": layer["norms"] + hidden,
        "biases": layer["biases"] + mixture["biases"] + dense * _feed_forward_biases(model, model.intermediate_size),
        "head": matrix,
    }
    selected = (layers - dense) * _selected(model)
    one = sum(_layer(model).values()) + sum(_mixture(model).values()) + 2 * hidden * hidden + 3 * hidden
    idle = _mixture(model)["routed experts"] - _selected(model)
    depth = model.num_nextn_predict_layers
    return Parameters(
        by_part,
        {**by_part, "embedding": 0, "routed experts": selected},
        prediction=depth * one,
        active_prediction=depth * (one - idle),
        router_biases=(layers - dense) * model.n_routed_experts if model.has_router_bias else 0,
    )


def prediction_matrices(model: ModelSection) -> int:
    """Parameters in the matrices of one module of multi-token prediction that act on a token, without head."""
    mixture = _mixture(model)
    acting = mixture["gates"] + mixture["shared experts"] + _selected(model)
    return attention_matrices(model) + acting + 2 * model.hidden_size**2


def _layer(model: ModelSection) -> dict[str, int]:
    """What every layer has."""
    latents = model.kv_lora_rank + (model.q_lora_rank or 0)
    biases = model.hidden_size + model.kv_lora_rank + model.qk_rope_head_dim + (model.q_lora_rank or 0)
    return {
        "attention": attention_matrices(model),
        "norms": 2 * model.hidden_size + latents,
        "biases": biases if model.attention_bias else 0,
    }


def _mixture(model: ModelSection) -> dict[str, int]:
    """What a layer has that is a mixture of experts."""
    expert = 3 * model.hidden_size * model.moe_intermediate_size
    learned = model.router_noise is not None and model.router_noise.kind == "learned"
    width = model.n_shared_experts * model.moe_intermediate_size
    return {
        "gates": (2 if learned else 1) * model.n_routed_experts * model.hidden_size,
        "shared experts": model.n_shared_experts * expert,
        "routed experts": model.n_routed_experts * expert,
        "biases": _feed_forward_biases(model, width) if width else 0,
    }


def _selected(model: ModelSection) -> int:
    """Parameters of the experts that a token has (at most, where their number adapts)."""
    return model.num_experts_per_tok * 3 * model.hidden_size * model.moe_intermediate_size


def _feed_forward_biases(model: ModelSection, width: int) -> int:
    return 2 * width + model.hidden_size if model.mlp_bias else 0


def attention_matrices(model: ModelSection) -> int:
    """Parameters in the projections of one latent-attention layer, without its norms and biases."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    query = heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)
    rank = model.q_lora_rank
    queries = hidden * query if rank is None else rank * (hidden + query)
    latent = hidden * (model.kv_lora_rank + model.qk_rope_head_dim)
    expanded = model.kv_lora_rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    return queries + latent + expanded + heads * model.v_head_dim * hidden
