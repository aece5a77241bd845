"""The DeepSeek models that the benchmarks run: ours and transformers', with the same weights."""

from typing import Any

import torch

from configs.schema.models.deepseek import DeepseekSection
from training.export.deepseek import released_config
from training.models.deepseek import DeepseekForCausalLM, init_weights

VOCAB = 8192
_COMMON = {"n_shared_experts": 1, "first_k_dense_replace": 1, "qk_rope_head_dim": 16, "initializer_range": 0.02}
#: Small versions of V3 with its gate, groups and latents. One has 17 million parameters, of which 6.3 million are
#: active per token. The other has 60 million, of which 21 million are active.
SHAPES = {
    "17M": DeepseekSection(
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        moe_intermediate_size=112,
        n_routed_experts=24,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=48,
        v_head_dim=48,
        **_COMMON,
    ),
    "60M": DeepseekSection(
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1536,
        moe_intermediate_size=128,
        n_routed_experts=32,
        num_experts_per_tok=6,
        n_group=4,
        topk_group=2,
        q_lora_rank=192,
        kv_lora_rank=128,
        qk_nope_head_dim=48,
        v_head_dim=48,
        **_COMMON,
    ),
}
#: transformers' implementations of experts. "eager" is a loop over the experts.
EXPERTS = ("eager", "grouped_mm", "batched_mm")


def ours(shape: DeepseekSection, dtype: torch.dtype, vocab: int = VOCAB) -> DeepseekForCausalLM:
    model = DeepseekForCausalLM(shape, vocab)
    init_weights(model, 0)
    return model.to(dtype)


def transformers_model(shape: DeepseekSection, dtype: torch.dtype, experts: str, vocab: int = VOCAB) -> Any:
    """Return transformers' model of this shape with our weights. It uses PyTorch's fused attention."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    released = released_config(shape, vocab)
    for key in ("model_type", "architectures", "rope_scaling"):
        released.pop(key)
    config = DeepseekV3Config(**released, pad_token_id=None, attn_implementation="sdpa", experts_implementation=experts)
    model = DeepseekV3ForCausalLM(config)
    model.load_state_dict(ours(shape, torch.float32, vocab).state_dict())
    return model.to(dtype)
