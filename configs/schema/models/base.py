"""What the sections of all model families share, and what other parts of a recipe ask of any of them."""

from typing import ClassVar, Literal

from pydantic import Field

from configs.schema.base import NonIdentity, Section

#: Type of the fault of a family that there is not.
UNKNOWN_FAMILY = "unknown_family"


#: What a model is trained on.
Task = Literal["language_modeling", "token_classification", "seq2seq", "sequence_classification"]


class ModelSection(Section):
    """A model; its subclasses are the families.

    Attributes:
        task: what it is trained on: token shards (language modeling), a target per token of a text, a text per text
            (seq2seq), or a class per text.
    """

    task: ClassVar[Task] = "language_modeling"

    vocab_size: int | None = Field(None, gt=0, description="rows of the embedding; default: the tokenizer's")
    compile: NonIdentity[bool] = Field(False, description="compile what compiles without graph breaks")

    @property
    def max_seq_len(self) -> int | None:
        """Tokens of the longest sequence that it reads; None: any number."""
        return None

    @property
    def backbone_section(self) -> "ModelSection":
        """What computes the hidden states: the model itself, or the one that it is built upon."""
        return self

    @property
    def rate_scales(self) -> dict[str, float]:
        """Learning rates over ``train.learning_rate``, by what parameters' names begin with; the others' are 1."""
        return {}

    @property
    def num_moe_layers(self) -> int:
        """Layers that are a mixture of experts; of a frozen backbone none, as each rank then has all of it."""
        return 0

    @property
    def has_experts(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return self.num_moe_layers > 0

    @property
    def expert_count(self) -> int:
        """Routed experts of a layer that has any; 1 where none has."""
        return 1

    @property
    def prediction_depth(self) -> int:
        """Modules of multi-token prediction."""
        return 0
