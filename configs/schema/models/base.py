"""The base class of the model sections. Each model family has its own section."""

from typing import ClassVar, Literal

from pydantic import Field

from configs.schema.adapter import Target
from configs.schema.base import NonIdentity, Section

#: Type of the validation error for an unknown family.
UNKNOWN_FAMILY = "unknown_family"


#: What a model is trained to do.
Task = Literal["language_modeling", "token_classification", "seq2seq", "sequence_classification"]


class ModelSection(Section):
    """A model. Each family is a subclass.

    Attributes:
        task: what the model predicts: the next token (language modeling), a target per token, a target text (seq2seq)
            or a class per text.
    """

    task: ClassVar[Task] = "language_modeling"

    vocab_size: int | None = Field(
        None,
        gt=0,
        description="Number of embedding rows. May exceed the number of token ids. Defaults to `tokenizer.vocab_size`.",
    )
    compile: NonIdentity[bool] = Field(
        False, description="Compile parts of the model with `torch.compile`. Does not work with ZeRO 3."
    )

    @property
    def max_seq_len(self) -> int | None:
        """Maximum number of tokens per sequence, or None if there is no limit."""
        return None

    @property
    def backbone_section(self) -> "ModelSection":
        """The section for the model that computes hidden states: a classifier's backbone, or otherwise this section."""
        return self

    @property
    def rate_scales(self) -> dict[str, float]:
        """Pattern of parameter names -> multiplier for ``train.learning_rate``. Other parameters have multiplier 1."""
        return {}

    @property
    def adapter_targets(self) -> tuple[Target, ...]:
        """The layers that can have adapters in fine-tuning."""
        return ()

    @property
    def num_moe_layers(self) -> int:
        """Number of trained mixture-of-experts layers.

        It is 0 for a frozen backbone, because every rank holds a complete copy of the backbone.
        """
        return 0

    @property
    def has_experts(self) -> bool:
        """Whether any trained layer is a mixture of experts."""
        return self.num_moe_layers > 0

    @property
    def expert_count(self) -> int:
        """Number of routed experts per mixture-of-experts layer, or 1 if there is no such layer."""
        return 1

    @property
    def prediction_depth(self) -> int:
        """Number of multi-token prediction modules."""
        return 0
