"""The Mini-Transformer encoder."""

from typing import ClassVar, Literal

from pydantic import Field

from configs.schema.models.base import Task
from configs.schema.models.transformer import Activation, Positions, TransformerSection


class EncoderSection(TransformerSection):
    """A bidirectional encoder with a target for each token, as in "Attention Is All You Need" (arXiv 1706.03762).

    | size | hidden_size | heads | layers | intermediate_size |
    |---|---|---|---|---|
    | Mini | 32 | 2 | 1 | 64 |
    | Small | 64 | 4 | 2 | 256 |
    | Medium | 128 | 8 | 4 | 512 |
    """

    task: ClassVar[Task] = "token_classification"

    family: Literal["encoder"] = "encoder"
    activation: Activation = "relu"
    positions: Positions = "sinusoidal"
    norm_first: bool = Field(False, description="layers normalise what goes in (pre-norm), not what comes out")
    tie_word_embeddings: bool = Field(False, description="the output head is the embedding")
