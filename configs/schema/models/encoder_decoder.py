"""The encoder-decoder Transformer."""

from typing import ClassVar, Literal

from pydantic import Field

from configs.schema.models.base import Task
from configs.schema.models.transformer import (
    ACTIVATION,
    NORM_FIRST,
    POSITIONS,
    Activation,
    Positions,
    TransformerSection,
)


class EncoderDecoderSection(TransformerSection):
    """An encoder-decoder that maps text to text (arXiv 1706.03762). See [encoder-decoder.md](encoder-decoder.md).

    The encoder has `num_hidden_layers` layers, and the decoder has `decoder_layers`.
    """

    task: ClassVar[Task] = "seq2seq"

    family: Literal["encoder_decoder"] = Field("encoder_decoder", description="Selects this model family.")
    activation: Activation = Field("relu", description=ACTIVATION)
    positions: Positions = Field("sinusoidal", description=POSITIONS)
    decoder_layers: int | None = Field(
        None, gt=0, description="Number of decoder layers. Defaults to the number of encoder layers."
    )
    norm_first: bool = Field(False, description=NORM_FIRST)
    cross_downsample: int = Field(
        1, ge=1, description="Number of consecutive encoder positions to average into one before cross-attention."
    )
    tie_word_embeddings: bool = Field(
        False, description="Share weights between the output head and the target embedding."
    )
    share_embeddings: bool = Field(False, description="Share one embedding between source and target.")

    @property
    def depth_of_decoder(self) -> int:
        """Number of decoder layers."""
        return self.decoder_layers or self.num_hidden_layers
