"""A classifier: a decoder or encoder with a new head over classes."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from configs.schema.base import NonIdentity, OptionalPath
from configs.schema.models.base import UNKNOWN_FAMILY, ModelSection, Task
from configs.schema.models.deepseek import DeepseekSection
from configs.schema.models.encoder import EncoderSection
from configs.schema.models.gpt import GptSection


def _family(section: Any) -> Any:
    return section.get("family", "encoder") if isinstance(section, dict) else getattr(section, "family", "encoder")


class ClassifierSection(ModelSection):
    """A text classifier: a backbone, pooling and a linear layer. See [classifier.md](classifier.md)."""

    task: ClassVar[Task] = "sequence_classification"

    family: Literal["classifier"] = Field("classifier", description="Selects this model family.")
    backbone: Annotated[
        Annotated[EncoderSection, Tag("encoder")]
        | Annotated[GptSection, Tag("gpt")]
        | Annotated[DeepseekSection, Tag("deepseek")],
        Discriminator(_family, UNKNOWN_FAMILY, "none of encoder, gpt, deepseek"),
    ] = Field(description="The model that computes hidden states: a section of family `encoder`, `gpt` or `deepseek`.")
    classes: int = Field(ge=2, description="Number of classes.")
    pooling: Literal["mean", "first", "last"] = Field(
        "mean",
        description="How hidden states are pooled for the head: the mean over all tokens, the first token, or the last "
        "one.",
    )
    weights: NonIdentity[OptionalPath] = Field(
        None,
        description="Run folder or checkpoint with the backbone's initial weights. By default, weights are random.",
    )
    backbone_rate: float = Field(
        1.0, ge=0, le=1, description="Learning rate of the backbone, relative to the head's. 0 freezes the backbone."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the head.")

    @property
    def max_seq_len(self) -> int | None:
        return self.backbone.max_seq_len

    @property
    def backbone_section(self) -> ModelSection:
        return self.backbone

    @property
    def rate_scales(self) -> dict[str, float]:
        return {} if self.backbone_rate in (0, 1) else {"model.*": self.backbone_rate}

    @property
    def num_moe_layers(self) -> int:
        return self.backbone.num_moe_layers if self.backbone_rate else 0

    @property
    def expert_count(self) -> int:
        return self.backbone.expert_count if self.backbone_rate else 1

    @model_validator(mode="after")
    def _fits(self) -> "ClassifierSection":
        if self.backbone.vocab_size is not None:
            raise ValueError("backbone.vocab_size is taken from vocab_size: set that")
        if self.backbone_rate == 0 and self.weights is None:
            raise ValueError("backbone_rate=0 freezes random weights: set weights too")
        if self.backbone.prediction_depth:
            raise ValueError("backbone.num_nextn_predict_layers: a classifier does not predict tokens: leave it out")
        if self.pooling == "first" and self.backbone.task == "language_modeling":
            raise ValueError(
                f"pooling=first: a {self.backbone.family} backbone is causal, so the first token does not see the "
                "others: set last or mean"
            )
        return self
