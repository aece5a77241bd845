"""The base class of the model sections for dense transformers."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.models.base import ModelSection

Activation = Literal["relu", "gelu", "gelu_new", "swiglu"]
Positions = Literal["learned", "sinusoidal", "rope", "alibi", "none"]


#: Descriptions of fields whose defaults differ between families.
ACTIVATION = "Activation of the feed-forward layers. `gelu_new` is the tanh approximation of the released GPT-2."
POSITIONS = (
    "How positions are encoded. `learned` and `sinusoidal` are added to the embedding. `rope` rotates queries and "
    "keys. `alibi` lowers attention scores in proportion to distance. In an encoder, half of the heads attend to "
    "earlier positions only and half to later ones only."
)
NORM_FIRST = "Normalize the input of each sublayer (pre-norm) instead of its output (post-norm)."


class TransformerSection(ModelSection):
    """Sizes and options of a stack of dense transformer layers."""

    hidden_size: int = Field(gt=0, description="Width of the hidden states.")
    num_hidden_layers: int = Field(gt=0, description="Number of layers.")
    num_attention_heads: int = Field(gt=0, description="Number of attention heads. Must divide `hidden_size`.")
    intermediate_size: int | None = Field(
        None, gt=0, description="Width of the feed-forward layers. Defaults to four times `hidden_size`."
    )
    activation: Activation = Field("gelu", description=ACTIVATION)
    positions: Positions = Field("learned", description=POSITIONS)
    rope_theta: float = Field(
        10_000.0, gt=1, description="Base of the frequencies of `rope` and `sinusoidal` positions."
    )
    window: int | None = Field(
        None,
        ge=1,
        description="Size of the sliding window. Each position attends to itself and to the `window - 1` positions "
        "before it and, in an encoder, to as many after it. By default, attention has no window.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on embeddings, attention weights and the output of each sublayer."
    )
    bias: bool = Field(True, description="Use biases in linear layers and in LayerNorm.")
    layer_norm_eps: float = Field(1e-5, gt=0, description="Epsilon of the norms.")
    max_position_embeddings: int = Field(
        1024, gt=0, description="Maximum sequence length. `learned` positions have a table of this size."
    )

    @property
    def max_seq_len(self) -> int | None:
        return self.max_position_embeddings

    @property
    def width(self) -> int:
        """Width of the feed-forward layers."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
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
                f"of {self.head_size}: positions=rope rotates pairs and needs an even number"
            )
        if self.positions not in ("rope", "sinusoidal") and self.rope_theta != 10_000:
            raise ValueError(
                f"rope_theta ({self.rope_theta:g}) is not read by {self.positions} positions: leave it out"
            )
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be even for sinusoidal positions")
        return self
