"""The Mini-Transformer encoder."""

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


class EncoderSection(TransformerSection):
    """A bidirectional encoder that predicts a target for each token (arXiv 1706.03762). See [encoder.md](encoder.md).

    | size | hidden_size | heads | layers | intermediate_size |
    |---|---|---|---|---|
    | Mini | 32 | 2 | 1 | 64 |
    | Small | 64 | 4 | 2 | 256 |
    | Medium | 128 | 8 | 4 | 512 |
    """

    task: ClassVar[Task] = "token_classification"

    family: Literal["encoder"] = Field("encoder", description="Selects this model family.")
    activation: Activation = Field("relu", description=ACTIVATION)
    positions: Positions = Field("sinusoidal", description=POSITIONS)
    norm_first: bool = Field(False, description=NORM_FIRST)
    tie_word_embeddings: bool = Field(False, description="Share weights between the output head and the embedding.")
