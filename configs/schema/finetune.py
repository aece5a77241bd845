"""Fine-tuning on chat examples."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.base import OptionalPath, Section


class ExamplesSection(Section):
    """Where the chat examples come from. [data.md](data.md#chat-examples) describes the formats."""

    kind: Literal["pydocs", "instructions"] = Field(
        "pydocs",
        description="`pydocs`: questions about Python functions, made from the installed packages. `instructions`: "
        "your own records, in JSON Lines or JSON.",
    )
    path: OptionalPath = Field(
        None,
        description="For `instructions`: a file, folder or glob of records with `instruction`, `input` and `output`, "
        "or with `messages`.",
    )
    held_out_fraction: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Approximate share of examples kept for evaluation. Examples with nearly the same question, or "
        "with the same rare answer, stay on one side.",
    )
    max_examples: int | None = Field(None, gt=0, description="Take a seeded sample of this size. None: all examples.")

    @model_validator(mode="after")
    def _fits(self) -> "ExamplesSection":
        if self.kind == "instructions" and not self.path:
            raise ValueError("path is missing: kind=instructions reads the examples from it")
        if self.kind != "instructions" and self.path:
            raise ValueError(f"path ({self.path}) is not read by the default, kind={self.kind}: set kind=instructions")
        return self


class FinetuneSection(Section):
    """Fine-tuning of the pretrained weights on chat examples. Leave the section out if you do not fine-tune.

    The loss covers the assistant's messages only. The learning rate follows a cosine, and router biases do not change.
    Everything else is as in `train`.
    """

    examples: ExamplesSection = ExamplesSection()
    epochs: float = Field(1.0, gt=0, description="Passes over the examples.")
    batch_examples: int = Field(32, gt=0, description="Examples per optimizer step, over all ranks.")
    learning_rate: float = Field(gt=0, description="Peak learning rate. Usually a fraction of the pretraining rate.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the steps used for linear warm-up.")
    final_fraction: float = Field(0.0, ge=0, le=1, description="Last learning rate, as a share of the peak.")
    max_length: int = Field(gt=1, description="Maximum tokens per example. Longer examples are left out and counted.")
