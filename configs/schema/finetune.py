"""Fine-tuning: one stage, or several in a row."""

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.base import OptionalPath, Section


class ExamplesSection(Section):
    """Where the chat examples come from. [data.md](data.md#chat-examples) describes the formats."""

    kind: Literal["pydocs", "instructions"] = Field(
        "pydocs",
        description="Kind of examples. `pydocs`: questions about Python functions, generated from installed packages. "
        "`instructions`: your own records, in JSON Lines or JSON.",
    )
    path: OptionalPath = Field(
        None,
        description="Records for `instructions`: a file, folder or glob of records with `instruction`, `input` and "
        "`output`, or with `messages`.",
    )
    held_out_fraction: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Approximate fraction of examples held out for evaluation. Examples with nearly the same question, "
        "or with the same rare answer, are never split between training and evaluation.",
    )
    max_examples: int | None = Field(
        None, gt=0, description="Use a seeded random sample of this many examples. By default, all are used."
    )

    @model_validator(mode="after")
    def _fits(self) -> "ExamplesSection":
        if self.kind == "instructions" and not self.path:
            raise ValueError("path is missing: kind=instructions reads the examples from it")
        if self.kind != "instructions" and self.path:
            raise ValueError(f"path ({self.path}) is not read by the default, kind={self.kind}: set kind=instructions")
        return self


#: Names that mean something else, where a stage is selected (``generate.stage``) or as a folder.
_OTHER_STAGES = ("pretrain", "finetune", "previous")


class FinetuneSection(Section):
    """Fine-tuning on chat examples: one stage or, as a list, several in a row. Leave it out if you do not fine-tune.

    With several stages, write `finetune.NAME.key=value` on the command line. The loss covers only the assistant's
    messages. The learning rate follows a cosine schedule, and router biases stay fixed. All other settings come from
    `train`.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        examples=["sft"],
        description="Name of the stage, and of its folders in `finetune/` and `examples/`. Defaults to the method.",
    )
    method: Literal["sft"] = Field(
        "sft", description="What the stage learns from. `sft`: answers (supervised fine-tuning)."
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
    max_length: int = Field(gt=1, description="Maximum tokens per example. Longer examples are dropped and counted.")

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        """Name a stage after its method."""
        if isinstance(value, dict) and value.get("name") is None:
            return {**value, "name": stage_name(value)}
        return value

    @model_validator(mode="after")
    def _name_is_free(self) -> "FinetuneSection":
        if self.name in _OTHER_STAGES or self.name in type(self).model_fields:
            raise ValueError(f"name ({self.name}) has another meaning: choose another name")
        return self


def stage_name(tree: dict[str, Any]) -> str:
    """Return the name of a stage that may not be validated yet."""
    return str(tree.get("name") or tree.get("method") or FinetuneSection.model_fields["method"].default)
