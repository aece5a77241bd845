"""What the sections of all model families share, and what other parts of a recipe ask of any of them."""

from typing import ClassVar, Literal

from pydantic import Field

from configs.schema.base import Free, Section

#: Type of the fault of a family that there is not.
UNKNOWN_FAMILY = "unknown_family"


class ModelSection(Section):
    """A model; its subclasses are the families.

    Attributes:
        learns: what it is trained on: ``text`` (token shards), ``tags`` (a target for each token of a text), ``pairs``
            (a text for a text) or ``labels`` (one for a text).
    """

    learns: ClassVar[Literal["text", "tags", "pairs", "labels"]] = "text"

    vocab_size: int | None = Field(None, gt=0, description="rows of the embedding; default: the tokenizer's")
    compile: Free[bool] = Field(False, description="compile what compiles without graph breaks")

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sequence that it reads; None: any number."""
        return None

    @property
    def trunk(self) -> "ModelSection":
        """What computes the hidden states: the model itself, or the one that it is built upon."""
        return self

    @property
    def rate_scales(self) -> dict[str, float]:
        """Learning rates over ``train.learning_rate``, by what parameters' names begin with; the others' are 1."""
        return {}

    @property
    def mixtures(self) -> int:
        """Layers that are a mixture of experts; of a frozen backbone none, as each rank then has all of it."""
        return 0

    @property
    def has_experts(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return self.mixtures > 0

    @property
    def expert_count(self) -> int:
        """Routed experts of a layer that has any; 1 where none has."""
        return 1

    @property
    def prediction_depth(self) -> int:
        """Modules of multi-token prediction."""
        return 0
