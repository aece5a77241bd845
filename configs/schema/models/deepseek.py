"""DeepSeek-V3 and V2: fields carry the names of DeepseekV3Config, so that a released config reads as a recipe."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.base import NonIdentity, Section
from configs.schema.models.base import ModelSection


class YarnSection(Section):
    """YaRN context extension (arXiv 2309.00071), as DeepSeek-V3's ``rope_scaling``."""

    factor: float = Field(40.0, ge=1.0)
    original_max_position_embeddings: int = Field(4096, gt=0)
    beta_fast: float = Field(32.0, gt=0)
    beta_slow: float = Field(1.0, gt=0)
    mscale: float = Field(1.0, ge=0)
    mscale_all_dim: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "YarnSection":
        if self.beta_slow > self.beta_fast:
            raise ValueError(f"beta_slow ({self.beta_slow:g}) exceeds beta_fast ({self.beta_fast:g})")
        return self


class NoiseSection(Section):
    """Noise on the gate's logits in training (arXiv 1701.06538); none in evaluation."""

    kind: Literal["fixed", "learned"] = Field("fixed", description="learned: its width is softplus of a projection")
    std: float = Field(1.0, gt=0, description="standard deviation, or what the learned width is multiplied by")


class AdaptiveSection(Section):
    """As many experts as the router's uncertainty asks for (arXiv 2403.07652), at most ``num_experts_per_tok``."""

    mass: float = Field(gt=0, le=1, description="share of the router's probability that the chosen must reach")
    minimum: int = Field(1, ge=1, description="experts that a token has at least")


class DeepseekSection(ModelSection):
    """DeepSeek-V3 or V2 shape: multi-head latent attention and a mixture of shared and routed experts.

    | release | scoring_func | topk_method | norm_topk_prob |
    |---|---|---|---|
    | V3 | sigmoid | noaux_tc | true |
    | V2 | softmax | group_limited_greedy | false |
    | V2-Lite | softmax | greedy | false |

    Softmax with ``norm_topk_prob`` is the classic gate: the softmax over the chosen experts' logits alone.
    """

    family: Literal["deepseek"] = "deepseek"
    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0, description="width of the dense feed-forward layers")
    moe_intermediate_size: int = Field(gt=0, description="width of one expert")
    n_routed_experts: int = Field(ge=2)
    n_shared_experts: int = Field(1, ge=0)
    num_experts_per_tok: int = Field(ge=1)
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = Field(
        "noaux_tc", description="noaux_tc: with a balancing bias, groups by their best two; greedy: no groups"
    )
    n_group: int = Field(1, ge=1)
    topk_group: int = Field(1, ge=1)
    first_k_dense_replace: int = Field(1, ge=0)
    norm_topk_prob: bool = True
    routed_scaling_factor: float = Field(1.0, gt=0)
    router_noise: NoiseSection | None = Field(None, description="left out: none")
    adaptive_experts: AdaptiveSection | None = Field(None, description="left out: always num_experts_per_tok")
    num_nextn_predict_layers: int = Field(0, ge=0, description="depth of multi-token prediction")
    new_prediction_layers: NonIdentity[bool] = Field(
        False,
        description="when importing a model directory that lacks weights of num_nextn_predict_layers, begin these with "
        "random values; otherwise without effect",
    )
    q_lora_rank: int | None = Field(None, gt=0)
    kv_lora_rank: int = Field(gt=0)
    qk_nope_head_dim: int = Field(gt=0)
    qk_rope_head_dim: int = Field(gt=0)
    v_head_dim: int = Field(gt=0)
    rope_theta: float = Field(10_000.0, gt=1)
    rope_scaling: YarnSection | None = None
    attention_bias: bool = Field(False, description="biases on the projections from and to the hidden state")
    mlp_bias: bool = Field(False, description="biases in the dense layers and the shared experts (V2)")
    rms_norm_eps: float = Field(1e-6, gt=0)
    initializer_range: float = Field(0.006, gt=0)
    tie_word_embeddings: bool = False
    max_position_embeddings: int = Field(4096, gt=0)

    @property
    def max_seq_len(self) -> int | None:
        return self.max_position_embeddings

    @property
    def expert_count(self) -> int:
        return self.n_routed_experts

    @property
    def prediction_depth(self) -> int:
        return self.num_nextn_predict_layers

    @property
    def num_moe_layers(self) -> int:
        """Layers that are a mixture of experts; the modules of multi-token prediction are layers too."""
        return self.num_hidden_layers + self.num_nextn_predict_layers - self.first_k_dense_replace

    @property
    def has_router_bias(self) -> bool:
        """Whether the gates have a balancing bias."""
        return self.topk_method == "noaux_tc"

    @model_validator(mode="after")
    def _fits(self) -> "DeepseekSection":
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim ({self.qk_rope_head_dim}) must be even: RoPE turns pairs")
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(
                f"first_k_dense_replace ({self.first_k_dense_replace}) exceeds num_hidden_layers "
                f"({self.num_hidden_layers})"
            )
        return self

    @model_validator(mode="after")
    def _routing_fits(self) -> "DeepseekSection":
        experts, chosen = self.n_routed_experts, self.num_experts_per_tok
        if chosen > experts:
            raise ValueError(f"num_experts_per_tok ({chosen}) exceeds n_routed_experts ({experts})")
        if experts % self.n_group:
            raise ValueError(f"n_routed_experts ({experts}) is not divisible by n_group ({self.n_group})")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group ({self.topk_group}) exceeds n_group ({self.n_group})")
        if self.topk_method == "greedy" and self.n_group > 1:
            raise ValueError(
                f"n_group ({self.n_group}) has no effect with topk_method=greedy: set group_limited_greedy"
            )
        group = experts // self.n_group
        if self.topk_method == "noaux_tc" and group < 2:
            raise ValueError(f"n_group ({self.n_group}) leaves one expert a group: groups are scored by their best two")
        if chosen > self.topk_group * group:
            raise ValueError(
                f"num_experts_per_tok ({chosen}) exceeds the {self.topk_group * group} experts of topk_group "
                f"({self.topk_group}) groups"
            )
        if self.adaptive_experts and self.adaptive_experts.minimum > chosen:
            raise ValueError(
                f"adaptive_experts.minimum ({self.adaptive_experts.minimum}) exceeds num_experts_per_tok ({chosen})"
            )
        return self
