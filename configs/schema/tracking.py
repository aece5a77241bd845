"""What a training run reports besides its metrics, and when it ends early."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from configs.schema.base import NonIdentity, Section

_Name = Annotated[str, StringConstraints(min_length=1)]


class WandbSection(Section):
    """Logging to Weights & Biases, in pretraining and fine-tuning (`pip install wandb`).

    See [training.md](training.md#weights--biases).
    """

    project: NonIdentity[_Name] = Field(description="The W&B project.")
    entity: NonIdentity[_Name | None] = Field(None, description="The W&B team or user. Defaults to your own.")
    name: NonIdentity[_Name | None] = Field(
        None,
        description="The run's display name. The stage is appended, as in `demo-pretrain`. Defaults to `run.name`.",
    )
    mode: NonIdentity[Literal["online", "offline"] | None] = Field(
        None,
        description="`offline` writes to `wandb/` in the training folder, for `wandb sync`. Defaults to the "
        "environment variable `WANDB_MODE`, or else `online`.",
    )
    tags: NonIdentity[tuple[_Name, ...]] = Field((), description="Tags of the run.")


class SamplesSection(Section):
    """Prompts that the model completes at every checkpoint, in pretraining and fine-tuning.

    See [training.md](training.md#samples).
    """

    prompts: NonIdentity[tuple[str, ...]] = Field(
        description="Texts to complete. In fine-tuning, each text is a user message, and the assistant answers it.",
    )
    max_new_tokens: NonIdentity[int] = Field(48, gt=0, description="Maximum number of new tokens per completion.")

    @model_validator(mode="after")
    def _has_texts(self) -> "SamplesSection":
        if not self.prompts or not all(self.prompts):
            raise ValueError("prompts has no text, or an empty one: list texts, or leave samples out")
        return self


class EarlyStoppingSection(Section):
    """The end of training when the validation loss stops falling.

    Later steps then use the checkpoint with the lowest validation loss. See [training.md](training.md#early-stopping).
    """

    patience: int = Field(gt=0, description="Number of validations in a row without improvement that end training.")
    min_delta: float = Field(
        0.0, ge=0, description="A validation is an improvement if its loss is lower by more than this, in nats."
    )
