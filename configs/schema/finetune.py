"""Fine-tuning: chat examples, loss on the assistant's turns, the training keys that differ from pretraining's."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.base import OptionalPath, Section


class ExamplesSection(Section):
    kind: Literal["pydocs", "instructions"] = Field(
        "pydocs", description="pydocs: questions about documented functions; instructions: jsonl, ndjson or json files"
    )
    path: OptionalPath = Field(
        None, description="instructions: file, folder or glob of instruction/input/output or messages records"
    )
    held_out_fraction: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="share of the examples kept for evaluation, about; those with nearly the same question or the same "
        "rare answer stay on one side",
    )
    max_examples: int | None = Field(None, gt=0, description="seeded sample of the examples")

    @model_validator(mode="after")
    def _fits(self) -> "ExamplesSection":
        if self.kind == "instructions" and not self.path:
            raise ValueError("path is missing: kind=instructions reads the examples from there")
        if self.kind != "instructions" and self.path:
            raise ValueError(f"path ({self.path}) is not read by kind={self.kind}, the default: set kind=instructions")
        return self


class FinetuneSection(Section):
    examples: ExamplesSection = ExamplesSection()
    epochs: float = Field(1.0, gt=0)
    batch_examples: int = Field(32, gt=0, description="examples an optimiser step")
    learning_rate: float = Field(gt=0, description="peak; a fraction of pretraining's")
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    final_fraction: float = Field(0.0, ge=0, le=1)
    max_length: int = Field(gt=1, description="longer examples are left out and counted")
