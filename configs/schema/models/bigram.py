"""The bigram model: the next token depends only on the current token."""

from typing import Literal

from pydantic import Field

from configs.schema.models.base import ModelSection


class BigramSection(ModelSection):
    """A table of logits with one row per token. See [bigram.md](bigram.md)."""

    family: Literal["bigram"] = Field("bigram", description="Selects this model family.")
    initializer_range: float = Field(0.02, gt=0, description="Standard deviation of the initial weights.")
