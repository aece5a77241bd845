"""Small model shapes that several tests share."""

from typing import Any

from configs.schema.models.deepseek import DeepseekSection, YarnSection

VOCAB = 101


def small(**changes: Any) -> DeepseekSection:
    """A two-layer model (one dense, one mixture) of a few ten thousand parameters, with ``changes`` applied."""
    fields: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "initializer_range": 0.1,
        "routed_scaling_factor": 1.5,
    }
    return DeepseekSection(**{**fields, **changes})


#: Every branch of the model at least once.
SHAPES = {
    "plain": small(),
    "query_latent": small(q_lora_rank=24),
    "groups": small(n_group=4, topk_group=2, num_experts_per_tok=4),
    "no_dense_layer": small(first_k_dense_replace=0),
    "all_dense": small(first_k_dense_replace=2),
    "two_shared": small(n_shared_experts=2),
    "tied": small(tie_word_embeddings=True),
    "unnormalized": small(norm_topk_prob=False),
    "odd_widths": small(moe_intermediate_size=13),
    "coarse_epsilon": small(rms_norm_eps=1e-3),
    "yarn": small(rope_scaling=YarnSection(factor=8.0, original_max_position_embeddings=16)),
    "yarn_uneven_mscale": small(
        rope_scaling=YarnSection(factor=8.0, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=1.2)
    ),
    "yarn_without_mscale": small(
        rope_scaling=YarnSection(factor=4.0, original_max_position_embeddings=32, mscale=0.0, mscale_all_dim=0.0)
    ),
    "yarn_ramp_meets": small(
        rope_scaling=YarnSection(factor=4.0, original_max_position_embeddings=16, beta_fast=1.0, beta_slow=1.0)
    ),
}
