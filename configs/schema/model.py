"""The model: fields carry the names of transformers' DeepseekV3Config, so that a released config reads as a recipe."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.base import Section


class YarnSection(Section):
    """YaRN context extension (arXiv 2309.00071), as DeepSeek-V3's ``rope_scaling``."""

    factor: float = Field(40.0, ge=1.0)
    original_max_position_embeddings: int = Field(4096, gt=0)
    beta_fast: float = Field(32.0, gt=0)
    beta_slow: float = Field(1.0, gt=0)
    mscale: float = Field(1.0, ge=0)
    mscale_all_dim: float = Field(1.0, ge=0)


class ModelSection(Section):
    """DeepSeek-V3 shape: multi-head latent attention and a mixture of shared and routed experts."""

    family: Literal["deepseek"] = "deepseek"
    vocab_size: int | None = Field(None, gt=0, description="rows of the embedding; default: the tokenizer's")
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0, description="width of the dense feed-forward layers")
    moe_intermediate_size: int = Field(gt=0, description="width of one expert")
    n_routed_experts: int = Field(ge=2)
    n_shared_experts: int = Field(1, ge=0)
    num_experts_per_tok: int = Field(ge=1)
    n_group: int = Field(1, ge=1)
    topk_group: int = Field(1, ge=1)
    first_k_dense_replace: int = Field(1, ge=0)
    norm_topk_prob: bool = True
    routed_scaling_factor: float = Field(1.0, gt=0)
    q_lora_rank: int | None = Field(None, gt=0)
    kv_lora_rank: int = Field(gt=0)
    qk_nope_head_dim: int = Field(gt=0)
    qk_rope_head_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)
    rope_theta: float = Field(10_000.0, gt=0)
    rope_scaling: YarnSection | None = None
    rms_norm_eps: float = Field(1e-6, gt=0)
    initializer_range: float = Field(0.006, gt=0)
    tie_word_embeddings: bool = False
    max_position_embeddings: int = Field(4096, gt=0)

    @property
    def has_experts(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return self.first_k_dense_replace < self.num_hidden_layers

    @model_validator(mode="after")
    def _fits(self) -> "ModelSection":
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim ({self.qk_rope_head_dim}) must be even: RoPE turns pairs")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds n_routed_experts ({self.n_routed_experts})"
            )
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_routed_experts ({self.n_routed_experts}) is not divisible by n_group ({self.n_group})")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group ({self.topk_group}) exceeds n_group ({self.n_group})")
        group = self.n_routed_experts // self.n_group
        if group < 2:
            raise ValueError(f"n_group ({self.n_group}) leaves one expert a group: groups are scored by their best two")
        if self.num_experts_per_tok > self.topk_group * group:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds the {self.topk_group * group} experts of "
                f"topk_group ({self.topk_group}) groups"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace ({self.first_k_dense_replace}) exceeds num_hidden_layers "
                f"({self.num_hidden_layers})"
            )
        return self
