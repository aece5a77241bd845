"""Fine-tuning: one stage, or several in a row."""

import math
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.adapter import LoraSection
from configs.schema.base import NonIdentity, Section
from configs.schema.examples import ExamplesSection
from configs.schema.models.base import ModelSection
from configs.schema.preference import PreferenceSection
from configs.schema.tracking import EarlyStoppingSection

#: Default of `replay`. In the demo, it lowers what fine-tuning forgets from 13% to 2% of the pretraining loss.
REPLAY = 0.25
#: Number of validations, unless ``eval_every`` is set.
_VALIDATIONS = 10
#: Names with another meaning: for ``generate.stage``, as a folder, or among the inputs of an evaluation.
_OTHER_STAGES = ("pretrain", "finetune", "previous", "tokens")
#: Methods that learn from pairs of a chosen and a rejected answer.
PAIRS = ("dpo",)


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
        description="What the stage learns from. `sft`: answers (supervised fine-tuning). `dpo`: pairs of a chosen and "
        "a rejected answer (direct preference optimization).",
    )
    start_from: str | None = Field(
        None,
        description="Stage whose weights this stage starts from: an earlier stage's name, or `pretrain`. Defaults to "
        "the stage before it. With `pretrain`, several fine-tunings of the same pretraining stand side by side.",
    )
    examples: ExamplesSection = ExamplesSection()
    preference: PreferenceSection | None = Field(
        None, description="The loss over pairs. Only with `method: dpo`, where it may be left out."
    )
    epochs: float = Field(1.0, gt=0, description="Number of passes over the examples.")
    batch_examples: int = Field(
        32, gt=0, description="Examples per optimizer step, over all ranks. With `method: dpo`, an example is a pair."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate. Usually a fraction of the pretraining rate.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Fraction of the steps used for linear warmup.")
    final_fraction: float = Field(0.0, ge=0, le=1, description="Final learning rate, as a fraction of the peak.")
    max_length: int = Field(
        gt=1, description="Maximum tokens per example. `examples.too_long` says what happens to longer examples."
    )
    packing: bool | None = Field(
        None,
        description="Pack the examples of a step into rows of up to `max_length` tokens, which saves padding. Examples "
        "do not attend to each other, and the loss stays the same. Defaults to `true`; with `dpo`, nothing is packed.",
    )
    replay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Approximate fraction of a step's tokens that are pretraining text, with a loss on every token. "
        "It keeps the model from forgetting. Requires `packing`. Defaults to 0.25 if examples are packed, else 0.",
    )
    eval_every: NonIdentity[int | None] = Field(
        None,
        ge=0,
        description="Steps between validations on the held-out examples. Defaults to a tenth of the steps. With 0, "
        "validation runs only after the last step. With `early_stopping`, a changed value defines another run.",
    )
    early_stopping: EarlyStoppingSection | None = Field(None, description="By default, fine-tuning does not end early.")
    keep_best: bool = Field(
        True,
        description="`true`: later steps use the checkpoint with the lowest validation loss. A checkpoint is saved "
        "whenever a validation has a new lowest loss. `false`: later steps use the last checkpoint.",
    )
    lora: LoraSection | None = None
    freeze: tuple[str, ...] = Field(
        (),
        description="Patterns of parameter names, such as `model.layers.0.*`: these parameters stay as they are. "
        "[lora.md](lora.md#patterns) shows the names.",
    )
    learning_rates: dict[str, float] = Field(
        {},
        description="Pattern of parameter names -> multiplier of their learning rate. The first pattern that matches a "
        "name applies.",
    )
    reset: tuple[Literal["embeddings", "head"], ...] = Field(
        (),
        description="Start the `embeddings` or the `head` from new random weights, drawn from `run.seed`. If they "
        "share one matrix (`model.tie_word_embeddings`), name both.",
    )

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        """Name a stage after its method."""
        if isinstance(value, dict) and value.get("name") is None:
            return {**value, "name": stage_name(value)}
        return value

    @model_validator(mode="before")
    @classmethod
    def _has_a_loss(cls, value: Any) -> Any:
        """Give a preference stage the default loss."""
        if isinstance(value, dict) and value.get("method") in PAIRS and value.get("preference") is None:
            return {**value, "preference": {}}
        return value

    @model_validator(mode="after")
    def _name_is_free(self) -> "FinetuneSection":
        if self.name in _OTHER_STAGES or self.name in type(self).model_fields:
            raise ValueError(
                f"name ({self.name}) is taken: choose a name that is neither a key of the stage nor a folder"
            )
        return self

    @model_validator(mode="after")
    def _is_validated(self) -> "FinetuneSection":
        if self.early_stopping and self.eval_every == 0:
            raise ValueError("early_stopping needs validations: leave out eval_every, or set it above 0")
        return self

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

    @model_validator(mode="after")
    def _method_fits(self) -> "FinetuneSection":
        if self.preference and self.method not in PAIRS:
            raise ValueError("preference is read with method=dpo only: leave it out, or set method=dpo")
        return self

    @model_validator(mode="after")
    def _preferences_fit(self) -> "FinetuneSection":
        """Reject keys that cannot be used to learn preferences."""
        examples, method = self.examples, f"method={self.method}"
        makes_pairs = examples.rejected is not None
        if self.method not in PAIRS:
            if makes_pairs:
                raise ValueError("examples.rejected is read with method=dpo only: leave it out, or set method=dpo")
            return self
        if examples.kind == "pydocs" and not makes_pairs:
            raise ValueError(
                f"examples.kind (pydocs) has no preferences, which {method} learns: set files or hub, or "
                "examples.rejected=verbose"
            )
        if examples.format not in (None, "preference") and not makes_pairs:
            raise ValueError(f"examples.format ({examples.format}): {method} learns preferences: leave it out")
        if examples.loss_on != "assistant":
            raise ValueError(f"examples.loss_on ({examples.loss_on}): {method} learns answers: leave it out")
        if self.packing:
            raise ValueError(f"packing (true) is for single answers, not for the pairs of {method}: leave it out")
        return self

    @model_validator(mode="after")
    def _replay_fits(self) -> "FinetuneSection":
        if self.method in PAIRS and self.replay:
            raise ValueError(f"replay ({self.replay:g}) is not read with method={self.method}: leave it out")
        if self.replay and not self.packs:
            raise ValueError(f"replay ({self.replay:g}) needs packing=true, which packs text next to examples")
        return self

    def identity(self) -> dict[str, Any]:
        """Return the keys that define the stage. A default that is written out makes no difference."""
        # Validations only observe the training, unless they end it.
        validations = {"eval_every": self.eval_every} if self.early_stopping else {}
        return {**super().identity(), **validations, "packing": self.packs, "replay": self.replayed}

    @property
    def rows(self) -> int:
        """Number of rows that an example has in a batch: 2 for a pair of answers."""
        return 2 if self.method in PAIRS else 1

    @property
    def packs(self) -> bool:
        """Whether examples are packed."""
        return self.method not in PAIRS and self.packing is not False

    @property
    def replayed(self) -> float:
        """Approximate fraction of a step's tokens that are pretraining text."""
        return self.replay if self.replay is not None else REPLAY if self.packs else 0.0

    def steps(self, examples: int) -> int:
        """Return the number of optimizer steps over this number of training examples."""
        return max(1, math.ceil(self.epochs * examples / self.batch_examples))

    def validation_interval(self, steps: int) -> int:
        """Return the number of steps between validations in a stage of ``steps`` steps, or 0."""
        return math.ceil(steps / _VALIDATIONS) if self.eval_every is None else self.eval_every

    def faults_for(self, model: ModelSection) -> Iterator[tuple[str, str]]:
        """Yield a key and what is wrong with it, for each choice of the trained part that does not fit a model."""
        family, targets = f"model.family={model.identity()['family']}", model.adapter_targets
        if self.lora and not targets:
            yield "lora", f": {family} has no layers that can have adapters: leave it out"
            return
        for target in (self.lora and self.lora.targets) or ():
            if target not in targets:
                layers = target.replace("_", " ")
                yield "lora.targets", f": this model has no layers for {layers}: choose from {', '.join(targets)}"
        if "head" in self.reset and family == "model.family=bigram":
            yield "reset", f" (head): {family} has no head: leave it out"
        if getattr(model, "tie_word_embeddings", False) and len(set(self.reset)) == 1:
            yield (
                "reset",
                f" ({self.reset[0]}): model.tie_word_embeddings shares one matrix between the embeddings and the head: "
                "name both, or neither",
            )


def stage_name(tree: dict[str, Any]) -> str:
    """Return the name of a stage that may not be validated yet."""
    return str(tree.get("name") or tree.get("method") or FinetuneSection.model_fields["method"].default)
