"""DeepSeek models: total and active parameters, and attention FLOPs."""

from configs.schema.models.deepseek import DeepseekSection
from training.estimate.counts import Parameters


def parameters(model: DeepseekSection, vocab_size: int) -> Parameters:
    """Count parameters by part, for an embedding and head with ``vocab_size`` rows."""
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
    tables = matrix * (1 if model.tie_word_embeddings else 2)
    return Parameters(
        by_part,
        {**by_part, "embedding": 0, "routed experts": selected},
        tables=tables,
        prediction=depth * one,
        active_prediction=depth * (one - idle),
        router_biases=(layers - dense) * model.n_routed_experts if model.has_router_bias else 0,
    )


def prediction_matrices(model: DeepseekSection) -> int:
    """Count the active parameters in the matrices of one multi-token prediction module, without the head."""
    mixture = _mixture(model)
    active = mixture["gates"] + mixture["shared experts"] + _selected(model)
    return attention_matrices(model) + active + 2 * model.hidden_size**2


def _layer(model: DeepseekSection) -> dict[str, int]:
    """Count the parameters that every layer has, whether dense or MoE."""
    latents = model.kv_lora_rank + (model.q_lora_rank or 0)
    biases = model.hidden_size + model.kv_lora_rank + model.qk_rope_head_dim + (model.q_lora_rank or 0)
    return {
        "attention": attention_matrices(model),
        "norms": 2 * model.hidden_size + latents,
        "biases": biases if model.attention_bias else 0,
    }


def _mixture(model: DeepseekSection) -> dict[str, int]:
    """Count the parameters of one mixture of experts."""
    expert = 3 * model.hidden_size * model.moe_intermediate_size
    learned = model.router_noise is not None and model.router_noise.kind == "learned"
    width = model.n_shared_experts * model.moe_intermediate_size
    return {
        "gates": (2 if learned else 1) * model.n_routed_experts * model.hidden_size,
        "shared experts": model.n_shared_experts * expert,
        "routed experts": model.n_routed_experts * expert,
        "biases": _feed_forward_biases(model, width) if width else 0,
    }


def _selected(model: DeepseekSection) -> int:
    """Count the parameters of the experts selected for one token, assuming the maximum number if k is adaptive."""
    return model.num_experts_per_tok * 3 * model.hidden_size * model.moe_intermediate_size


def _feed_forward_biases(model: DeepseekSection, width: int) -> int:
    return 2 * width + model.hidden_size if model.mlp_bias else 0


def attention_matrices(model: DeepseekSection) -> int:
    """Count the parameters in one latent attention layer's projections, without norms and biases."""
    hidden, heads = model.hidden_size, model.num_attention_heads
    query = heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)
    rank = model.q_lora_rank
    queries = hidden * query if rank is None else rank * (hidden + query)
    latent = hidden * (model.kv_lora_rank + model.qk_rope_head_dim)
    expanded = model.kv_lora_rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    return queries + latent + expanded + heads * model.v_head_dim * hidden


def matrix_parameters(model: DeepseekSection, vocab_size: int, predicts: bool) -> int:
    """Count active matrix parameters. Each multi-token prediction depth adds its own matrices and the shared head."""
    counts = parameters(model, vocab_size)
    main = counts.active - counts.by_part["norms"] - counts.by_part["biases"]
    depth = model.num_nextn_predict_layers if predicts else 0
    return main + depth * (prediction_matrices(model) + vocab_size * model.hidden_size)


def attention_flops(model: DeepseekSection, context: int, predicts: bool) -> float:
    """Return attention's forward plus backward FLOPs per token, with (context + 1) / 2 visible positions on average."""
    widths = model.qk_nope_head_dim + model.qk_rope_head_dim + model.v_head_dim
    layers = model.num_hidden_layers + (model.num_nextn_predict_layers if predicts else 0)
    return 3.0 * layers * 2.0 * model.num_attention_heads * widths * (context + 1) / 2
