"""DeepSeek-V3 and V2. Fields are named as in transformers' DeepseekV3Config, so released configs carry over."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from configs.schema.adapter import Target
from configs.schema.base import NonIdentity, Section
from configs.schema.models.base import ModelSection


class YarnSection(Section):
    """YaRN context extension (arXiv 2309.00071), called `rope_scaling` in released configurations."""

    factor: float = Field(40.0, ge=1.0, description="Factor by which the context is extended.")
    original_max_position_embeddings: int = Field(4096, gt=0, description="Context length before the extension.")
    beta_fast: float = Field(
        32.0, gt=0, description="Frequencies with more rotations than this in the original context are kept."
    )
    beta_slow: float = Field(
        1.0,
        gt=0,
        description="Frequencies with fewer rotations than this are divided by `factor`. Frequencies in between are "
        "blended linearly.",
    )
    mscale: float = Field(
        1.0, ge=0, description="Scale of the rotary table, relative to `mscale_all_dim`. Equal values cancel out."
    )
    mscale_all_dim: float = Field(
        1.0, ge=0, description="The attention scores are scaled by (0.1 x this x ln(factor) + 1) squared."
    )

    @model_validator(mode="after")
    def _fits(self) -> "YarnSection":
        if self.beta_slow > self.beta_fast:
            raise ValueError(f"beta_slow ({self.beta_slow:g}) exceeds beta_fast ({self.beta_fast:g})")
        return self


class NoiseSection(Section):
    """Noise on the router logits during training (arXiv 1701.06538)."""

    kind: Literal["fixed", "learned"] = Field(
        "fixed",
        description="How the noise's scale is set. `fixed`: the same standard deviation for all tokens. `learned`: the "
        "softplus of a learned projection.",
    )
    std: float = Field(1.0, gt=0, description="Standard deviation for `fixed`, or its multiplier for `learned`.")


class AdaptiveSection(Section):
    """An adaptive number of experts per token, based on the router's uncertainty (arXiv 2403.07652).

    `num_experts_per_tok` is the maximum.
    """

    mass: float = Field(
        gt=0, le=1, description="A token uses the fewest experts whose router probabilities sum to at least this."
    )
    minimum: int = Field(1, ge=1, description="Minimum number of experts per token.")


class DeepseekSection(ModelSection):
    """Latent attention plus shared and routed experts, as in DeepSeek-V3 and V2. See [deepseek.md](deepseek.md).

    | release | `scoring_func` | `topk_method` | `norm_topk_prob` |
    |---|---|---|---|
    | V3 | `sigmoid` | `noaux_tc` | `true` |
    | V2 | `softmax` | `group_limited_greedy` | `false` |
    | V2-Lite | `softmax` | `greedy` | `false` |

    `softmax` with `norm_topk_prob` is the classic gate: a softmax over the logits of the selected experts.
    """

    headings: ClassVar[dict[str, str]] = {
        "vocab_size": "Size",
        "n_routed_experts": "Experts",
        "scoring_func": "Routing",
        "q_lora_rank": "Attention",
        "rope_theta": "Positions",
        "attention_bias": "Other layers and initialization",
        "num_nextn_predict_layers": "Multi-token prediction",
    }

    family: Literal["deepseek"] = Field("deepseek", description="Selects this model family. It is the default.")
    hidden_size: int = Field(gt=0, description="Width of the hidden states.")
    num_hidden_layers: int = Field(gt=0, description="Number of layers.")
    num_attention_heads: int = Field(gt=0, description="Number of attention heads.")
    intermediate_size: int = Field(gt=0, description="Width of the dense feed-forward layers.")
    moe_intermediate_size: int = Field(
        gt=0, description="Width of one expert. A multiple of 8, or of 4 with `train.precision: fp32`."
    )
    first_k_dense_replace: int = Field(1, ge=0, description="Number of dense layers before the first MoE layer.")
    n_routed_experts: int = Field(ge=2, description="Number of routed experts per layer.")
    n_shared_experts: int = Field(
        1, ge=0, description="Number of shared experts per layer. Every token uses all of them."
    )
    num_experts_per_tok: int = Field(ge=1, description="Number of routed experts per token.")
    scoring_func: Literal["sigmoid", "softmax"] = Field("sigmoid", description="How router logits become scores.")
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = Field(
        "noaux_tc",
        description="How experts are selected. `noaux_tc`: by score plus a balancing bias, within the groups whose two "
        "best experts have the highest sum. `group_limited_greedy`: by score, within the groups whose best "
        "expert has the highest score. `greedy`: by score, without groups.",
    )
    n_group: int = Field(1, ge=1, description="Number of groups of routed experts. Must divide `n_routed_experts`.")
    topk_group: int = Field(1, ge=1, description="Number of groups that a token may use.")
    norm_topk_prob: bool = Field(True, description="Divide the weights of the selected experts by their sum.")
    routed_scaling_factor: float = Field(1.0, gt=0, description="Multiplier for the routed experts' output.")
    router_noise: NoiseSection | None = Field(None, description="Leave the section out to disable noise.")
    adaptive_experts: AdaptiveSection | None = Field(
        None,
        description="Leave the section out to use `num_experts_per_tok` experts for every token.",
    )
    q_lora_rank: int | None = Field(
        None, gt=0, description="Width of the query latent. By default, there is no query latent."
    )
    kv_lora_rank: int = Field(gt=0, description="Width of the key-value latent, which is cached.")
    qk_nope_head_dim: int = Field(
        gt=0, description="Dimensions of each head's queries and keys that have no positional encoding."
    )
    qk_rope_head_dim: int = Field(
        gt=0, description="Dimensions of each head's queries and keys that have rotary positions. Must be even."
    )
    v_head_dim: int = Field(gt=0, description="Dimensions of each head's values.")
    rope_theta: float = Field(10_000.0, gt=1, description="Base of the rotary frequencies.")
    rope_scaling: YarnSection | None = Field(None, description="Leave the section out to disable the extension.")
    max_position_embeddings: int = Field(4096, gt=0, description="Maximum sequence length.")
    attention_bias: bool = Field(
        False, description="Use biases in the attention projections from and to the hidden states."
    )
    mlp_bias: bool = Field(False, description="Use biases in dense layers and shared experts (V2).")
    rms_norm_eps: float = Field(1e-6, gt=0, description="Epsilon of the norms.")
    initializer_range: float = Field(0.006, gt=0, description="Standard deviation of the initial weights.")
    tie_word_embeddings: bool = Field(False, description="Share weights between the output head and the embedding.")
    num_nextn_predict_layers: int = Field(
        0, ge=0, description="Number of multi-token prediction modules. 0 disables them."
    )
    new_prediction_layers: NonIdentity[bool] = Field(
        False,
        description="Whether `make import` accepts a model directory without weights for multi-token prediction, and "
        "initializes these layers randomly.",
    )

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
    def adapter_targets(self) -> tuple[Target, ...]:
        dense: tuple[Target, ...] = ("dense",) if self.first_k_dense_replace else ()
        routed: tuple[Target, ...] = ("routed_experts",) if self.num_moe_layers else ()
        shared: tuple[Target, ...] = ("shared_experts",) if routed and self.n_shared_experts else ()
        return ("attention", *dense, *shared, *routed)

    @property
    def num_moe_layers(self) -> int:
        """Number of mixture-of-experts layers, including those for multi-token prediction."""
        return self.num_hidden_layers + self.num_nextn_predict_layers - self.first_k_dense_replace

    @property
    def has_router_bias(self) -> bool:
        """Whether the routers have a balancing bias."""
        return self.topk_method == "noaux_tc"

    @model_validator(mode="after")
    def _fits(self) -> "DeepseekSection":
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim ({self.qk_rope_head_dim}) must be even: RoPE rotates pairs")
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
            raise ValueError(f"n_group ({self.n_group}) gives one expert per group: noaux_tc needs at least two")
        if chosen > self.topk_group * group:
            raise ValueError(
                f"num_experts_per_tok ({chosen}) exceeds the {self.topk_group * group} experts in topk_group "
                f"({self.topk_group}) groups"
            )
        if self.adaptive_experts and self.adaptive_experts.minimum > chosen:
            raise ValueError(
                f"adaptive_experts.minimum ({self.adaptive_experts.minimum}) exceeds num_experts_per_tok ({chosen})"
            )
        return self
