"""Fine-tuning on chat examples."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema.adapter import LoraSection
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


class FinetuneSection(Section):
    """Fine-tuning of the pretrained weights on chat examples. Leave the section out if you do not fine-tune.

    The loss covers only the assistant's messages. The learning rate follows a cosine schedule, and router biases stay
    fixed. All other settings come from `train`.
    """

    examples: ExamplesSection = ExamplesSection()
    epochs: float = Field(1.0, gt=0, description="Number of passes over the examples.")
    batch_examples: int = Field(32, gt=0, description="Examples per optimizer step, over all ranks.")
    learning_rate: float = Field(gt=0, description="Peak learning rate. Usually a fraction of the pretraining rate.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Fraction of the steps used for linear warmup.")
    final_fraction: float = Field(0.0, ge=0, le=1, description="Final learning rate, as a fraction of the peak.")
    max_length: int = Field(gt=1, description="Maximum tokens per example. Longer examples are dropped and counted.")
    lora: LoraSection | None = None
    freeze: tuple[str, ...] = Field(
        (),
        description="Patterns of parameter names, such as `model.layers.0.*`: these parameters stay as they are. `make "
        "inspect` lists the names.",
    )
    learning_rates: dict[str, float] = Field(
        {},
        description="Pattern of parameter names -> multiplier of their learning rate. The first pattern that matches a "
        "name applies.",
    )
    reset: tuple[Literal["embeddings", "head"], ...] = Field(
        (),
        description="Start the `embeddings` or the `head` from new random weights, drawn from `run.seed`. If they share "
        "one matrix (`model.tie_word_embeddings`), name both.",
    )

    @model_validator(mode="after")
    def _trained_part_fits(self) -> "FinetuneSection":
        if self.lora and self.freeze:
            raise ValueError(
                f"freeze ({', '.join(self.freeze)}): lora already freezes all weights but the adapters: leave it out, "
                "and choose the adapters with lora.targets"
            )
        for pattern, scale in self.learning_rates.items():
            if scale <= 0:
                raise ValueError(f"learning_rates: {pattern} ({scale:g}) must be above 0: use freeze to train nothing")
        return self
