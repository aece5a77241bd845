"""The encoder-decoder Transformer."""

from typing import ClassVar, Literal

from pydantic import Field

from configs.schema.models.base import Task
from configs.schema.models.transformer import Activation, Positions, TransformerSection


class EncoderDecoderSection(TransformerSection):
    """A text for a text (arXiv 1706.03762): ``num_hidden_layers`` of encoder, ``decoder_layers`` of decoder."""

    task: ClassVar[Task] = "seq2seq"

    family: Literal["encoder_decoder"] = "encoder_decoder"
    activation: Activation = "relu"
    positions: Positions = "sinusoidal"
    decoder_layers: int | None = Field(None, gt=0, description="left out: as many as the encoder has")
    norm_first: bool = Field(False, description="layers normalise what goes in (pre-norm), not what comes out")
    cross_downsample: int = Field(
        1, ge=1, description="so many positions of the encoder's output are averaged into one before cross-attention"
    )
    tie_word_embeddings: bool = Field(False, description="the output head is the target embedding")
    share_embeddings: bool = Field(False, description="source and target have one embedding")

    @property
    def depth_of_decoder(self) -> int:
        """Layers of the decoder."""
        return self.decoder_layers or self.num_hidden_layers
