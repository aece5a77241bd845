"""A classifier: any decoder or encoder with a fresh head over classes."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from configs.schema.base import NonIdentity, OptionalPath
from configs.schema.models.base import UNKNOWN_FAMILY, ModelSection, Task
from configs.schema.models.deepseek import DeepseekSection
from configs.schema.models.encoder import EncoderSection
from configs.schema.models.gpt import GptSection


def _family(given: Any) -> Any:
    return given.get("family", "encoder") if isinstance(given, dict) else getattr(given, "family", "encoder")


class ClassifierSection(ModelSection):
    """A label for a text: the backbone's hidden states, pooled, through a linear layer."""

    task: ClassVar[Task] = "sequence_classification"

    family: Literal["classifier"] = "classifier"
    backbone: Annotated[
        Annotated[EncoderSection, Tag("encoder")]
        | Annotated[GptSection, Tag("gpt")]
        | Annotated[DeepseekSection, Tag("deepseek")],
        Discriminator(_family, UNKNOWN_FAMILY, "none of encoder, gpt, deepseek"),
    ]
    classes: int = Field(ge=2, description="labels that there are")
    pooling: Literal["mean", "first", "last"] = Field("mean", description="over a text's tokens, or one of them")
    weights: NonIdentity[OptionalPath] = Field(
        None, description="run folder or checkpoint whose weights the backbone begins with; left out: drawn"
    )
    backbone_rate: float = Field(
        1.0, ge=0, le=1, description="learning rate of the backbone over that of the head; 0: frozen"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of what the head reads")

    @property
    def max_seq_len(self) -> int | None:
        return self.backbone.max_seq_len

    @property
    def backbone_section(self) -> ModelSection:
        return self.backbone

    @property
    def rate_scales(self) -> dict[str, float]:
        return {} if self.backbone_rate in (0, 1) else {"model.": self.backbone_rate}

    @property
    def num_moe_layers(self) -> int:
        return self.backbone.num_moe_layers if self.backbone_rate else 0

    @property
    def expert_count(self) -> int:
        return self.backbone.expert_count if self.backbone_rate else 1

    @model_validator(mode="after")
    def _fits(self) -> "ClassifierSection":
        if self.backbone.vocab_size is not None:
            raise ValueError("backbone.vocab_size follows from vocab_size: set that")
        if self.backbone_rate == 0 and self.weights is None:
            raise ValueError("backbone_rate=0 freezes weights that were drawn and never learnt: set weights too")
        if self.backbone.prediction_depth:
            raise ValueError("backbone.num_nextn_predict_layers: a classifier predicts no tokens: leave it out")
        if self.pooling == "first" and self.backbone.task == "language_modeling":
            raise ValueError(
                f"pooling=first: a {self.backbone.family} backbone looks back alone, so that the first token knows "
                "nothing of the others: set last or mean"
            )
        return self
