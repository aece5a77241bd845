"""What the sections of the dense transformers share: sizes, activation, positions, attention window, dropout."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.models.base import ModelSection

Activation = Literal["relu", "gelu", "gelu_new", "swiglu"]
Positions = Literal["learned", "sinusoidal", "rope", "alibi", "none"]


class TransformerSection(ModelSection):
    """Sizes and switches of a stack of dense transformer layers."""

    hidden_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int | None = Field(
        None, gt=0, description="width of the feed-forward layers; left out: four times hidden_size"
    )
    activation: Activation = Field("gelu", description="gelu_new: the tanh approximation of GPT-2 as released")
    positions: Positions = Field(
        "learned",
        description="sinusoidal and learned are added to the embedding, rope turns queries and keys, alibi "
        "lowers the scores of what is far (where the family looks both ways, half of the heads look to each side)",
    )
    rope_theta: float = Field(10_000.0, gt=1, description="of rope and sinusoidal positions: their longest period")
    window: int | None = Field(
        None,
        ge=1,
        description="attention reaches so many positions back, its own among them (both ways where the "
        "family looks both ways); left out: all",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of embeddings, attention weights and what layers add")
    bias: bool = Field(True, description="biases of linear layers and of LayerNorm")
    layer_norm_eps: float = Field(1e-5, gt=0)
    max_position_embeddings: int = Field(
        1024, gt=0, description="longest sequence; learned positions have such a table"
    )

    @property
    def max_seq_len(self) -> int | None:
        return self.max_position_embeddings

    @property
    def width(self) -> int:
        """Of the feed-forward layers."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _heads_fit(self) -> "TransformerSection":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not divisible by num_attention_heads ({self.num_attention_heads})"
            )
        if self.positions == "rope" and self.head_size % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) over num_attention_heads ({self.num_attention_heads}) gives heads "
                f"of {self.head_size}: positions=rope turns pairs and needs an even number"
            )
        if self.positions not in ("rope", "sinusoidal") and self.rope_theta != 10_000:
            raise ValueError(f"rope_theta ({self.rope_theta:g}): {self.positions} positions have none: leave it out")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be even: sinusoidal positions come in pairs")
        return self
