"""GPT-2 and what is made from it: a decoder of dense layers."""

from typing import Literal

from pydantic import Field

from configs.schema.models.transformer import TransformerSection


class GptSection(TransformerSection):
    """GPT-2 (Radford and others, 2019), with or without biases; the course's GPT has ReLU and an untied head.

    | release | layers | heads | hidden_size |
    |---|---|---|---|
    | gpt2 | 12 | 12 | 768 |
    | gpt2-medium | 24 | 16 | 1024 |
    | gpt2-large | 36 | 20 | 1280 |
    | gpt2-xl | 48 | 25 | 1600 |
    """

    family: Literal["gpt"] = "gpt"
    initializer_range: float = Field(0.02, gt=0)
    norm: Literal["layer", "rms"] = Field("layer", description="LayerNorm, or RMSNorm, which has no bias")
    tie_word_embeddings: bool = Field(True, description="the output head is the embedding")
