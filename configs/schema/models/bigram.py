"""The bigram model: the next token depends on the current token only."""

from typing import Literal

from pydantic import Field

from configs.schema.models.base import ModelSection


class BigramSection(ModelSection):
    """One table of logits with a row per token. See [bigram.md](bigram.md)."""

    family: Literal["bigram"] = Field("bigram", description="This family.")
    initializer_range: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
