"""GPT-2 and its variants: decoders with dense layers."""

from typing import Literal

from pydantic import Field

from configs.schema.adapter import Target
from configs.schema.models.transformer import TransformerSection


class GptSection(TransformerSection):
    """A dense decoder-only transformer. The defaults are GPT-2's (Radford et al. 2019). See [gpt.md](gpt.md).

    | release | layers | heads | hidden_size |
    |---|---|---|---|
    | gpt2 | 12 | 12 | 768 |
    | gpt2-medium | 24 | 16 | 1024 |
    | gpt2-large | 36 | 20 | 1280 |
    | gpt2-xl | 48 | 25 | 1600 |
    """

    family: Literal["gpt"] = Field("gpt", description="Selects this model family.")
    initializer_range: float = Field(
        0.02,
        gt=0,
        description="Standard deviation of the initial weights. For projections into the residual stream, it is "
        "divided by sqrt(2 x layers).",
    )
    norm: Literal["layer", "rms"] = Field(
        "layer", description="Kind of norm. `layer`: LayerNorm. `rms`: RMSNorm, which has no bias."
    )
    tie_word_embeddings: bool = Field(True, description="Share weights between the output head and the embedding.")

    @property
    def adapter_targets(self) -> tuple[Target, ...]:
        return ("attention", "dense")
