"""The bigram model: what follows a token depends on that token alone."""

from typing import Literal

from pydantic import Field

from configs.schema.models.base import ModelSection


class BigramSection(ModelSection):
    """One table of logits, a row for each token."""

    family: Literal["bigram"] = "bigram"
    initializer_range: float = Field(0.02, gt=0)
