"""Fine-tuning: one stage, or several in a row."""

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.base import Section
from configs.schema.examples import ExamplesSection

#: Names that mean something else, where a stage is selected (``generate.stage``) or as a folder.
_OTHER_STAGES = ("pretrain", "finetune", "previous")


class FinetuneSection(Section):
    """Fine-tuning on chat examples: one stage or, as a list, several in a row. Leave it out if you do not fine-tune.

    With several stages, write `finetune.NAME.key=value` on the command line. By default, the loss covers only the
    assistant's messages. The learning rate follows a cosine schedule, and router biases stay fixed. All other settings
    come from `train`.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        examples=["sft"],
        description="Name of the stage, and of its folders in `finetune/` and `examples/`. Defaults to the method.",
    )
    method: Literal["sft", "dpo"] = Field(
        "sft",
        description="What the stage learns from. `sft`: answers (supervised fine-tuning). `dpo`: preferences, that is, "
        "pairs of a chosen and a rejected answer.",
    )
    start_from: str | None = Field(
        None,
        description="Stage whose weights this stage starts from: an earlier stage's name, or `pretrain`. Defaults to "
        "the stage before it. With `pretrain`, several fine-tunings of the same pretraining stand side by side.",
    )
    examples: ExamplesSection = ExamplesSection()
    epochs: float = Field(1.0, gt=0, description="Number of passes over the examples.")
    batch_examples: int = Field(32, gt=0, description="Examples per optimizer step, over all ranks.")
    learning_rate: float = Field(gt=0, description="Peak learning rate. Usually a fraction of the pretraining rate.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Fraction of the steps used for linear warmup.")
    final_fraction: float = Field(0.0, ge=0, le=1, description="Final learning rate, as a fraction of the peak.")
    max_length: int = Field(
        gt=1, description="Maximum tokens per example. `examples.too_long` says what happens to longer examples."
    )
    packing: bool = Field(
        False,
        description="Pack the examples of a step into rows of up to `max_length` tokens, which saves padding. Examples "
        "do not attend to each other. The loss stays the same.",
    )

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        """Name a stage after its method."""
        if isinstance(value, dict) and value.get("name") is None:
            return {**value, "name": stage_name(value)}
        return value

    @model_validator(mode="after")
    def _preferences_fit(self) -> "FinetuneSection":
        """Reject keys that cannot be used to learn preferences."""
        if self.method != "dpo":
            return self
        if self.examples.kind == "pydocs":
            raise ValueError("examples.kind (pydocs) has no preferences, which method=dpo learns: set files or hub")
        if self.examples.format not in (None, "preference"):
            raise ValueError(f"examples.format ({self.examples.format}): method=dpo learns preferences: leave it out")
        if self.examples.loss_on != "assistant":
            raise ValueError(f"examples.loss_on ({self.examples.loss_on}): method=dpo learns answers: leave it out")
        if self.packing:
            raise ValueError("packing (true) is for single answers, not for the pairs of method=dpo: leave it out")
        return self

    @model_validator(mode="after")
    def _name_is_free(self) -> "FinetuneSection":
        if self.name in _OTHER_STAGES or self.name in type(self).model_fields:
            raise ValueError(f"name ({self.name}) has another meaning: choose another name")
        return self


def stage_name(tree: dict[str, Any]) -> str:
    """Return the name of a stage that may not be validated yet."""
    return str(tree.get("name") or tree.get("method") or FinetuneSection.model_fields["method"].default)
