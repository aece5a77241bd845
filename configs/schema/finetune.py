"""Fine-tuning on chat examples."""

from pydantic import Field

from configs.schema.base import Section
from configs.schema.examples import ExamplesSection


class FinetuneSection(Section):
    """Fine-tuning of the pretrained weights on chat examples. Leave the section out if you do not fine-tune.

    By default, the loss covers only the assistant's messages. The learning rate follows a cosine schedule, and router
    biases stay fixed. All other settings come from `train`.
    """

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
