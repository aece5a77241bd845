"""Evaluation and text generation."""

from typing import ClassVar

from pydantic import Field, model_validator

from configs.schema.base import NonIdentity, OptionalPath, Section
from configs.schema.data import SourceSection


class EvaluateSection(Section):
    """How `make evaluate` measures the weights on held-out data."""

    batch: NonIdentity[int] = Field(16, gt=0, description="Samples per forward pass.")
    max_tokens: int | None = Field(
        None,
        gt=0,
        description="Stop after this many held-out tokens, or targets in examples. By default, all are used. Also "
        "applies to each of `texts`.",
    )
    texts: dict[str, SourceSection] = Field(
        {},
        description="More texts to measure the loss on, by name: any source, such as `{mine: {kind: text, path: "
        "book.txt}}`. They are not cleaned.",
    )
    tasks: tuple[str, ...] = Field(
        (),
        description="Tasks of lm-evaluation-harness to run: names, or paths of task files (`.yaml`). `battery` runs "
        "tasks that are made from the held-out documents and from Python's documentation. Requires the package "
        "`lm-eval`.",
    )
    task_path: OptionalPath = Field(
        None, description="Folder with further task files, whose tasks and groups can be named in `tasks`."
    )
    shots: int | None = Field(
        None, ge=0, description="Solved examples before each question. Defaults to what each task sets."
    )
    limit: int | None = Field(None, gt=0, description="Use only the first examples of each task, at most this many.")
    chat: bool = Field(
        False, description="Ask the tasks' questions in the chat format. Pretrained weights are still asked directly."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed for the examples of `battery`.")

    @model_validator(mode="after")
    def _fits(self) -> "EvaluateSection":
        for name, source in self.texts.items():
            if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
                raise ValueError(f"texts.{name}: a name has only letters, digits, - and _")
            for key in ("weight", "sample_bytes", "target_field"):
                if getattr(source, key) != SourceSection.model_fields[key].default:
                    raise ValueError(f"texts.{name}.{key} is not read: leave it out")
            if source.has_targets:
                raise ValueError(f"texts.{name}.kind={source.kind} has targets: use a kind of plain text")
        if not self.tasks and (self.task_path or self.shots is not None or self.limit or self.chat):
            key = next(
                key for key in ("task_path", "shots", "limit", "chat") if getattr(self, key) not in (None, False)
            )
            raise ValueError(f"{key} is read only with tasks: set evaluate.tasks, or leave it out")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks ({', '.join(self.tasks)}) names a task twice")
        return self


class ExportSection(Section):
    """What `make export` writes."""

    merge: bool = Field(
        False,
        description="For weights fine-tuned with `finetune.lora`: merge the adapters into the exported weights. "
        "`false` exports the model without them, and writes them to `export/adapter/` in peft's format.",
    )


class GenerateSection(Section):
    """How `make generate` continues a prompt. `make evaluate` and `make export` also read `weights` and `stage`."""

    headings: ClassVar[dict[str, str]] = {
        "prompt": "Prompt and weights",
        "max_new_tokens": "Length",
        "temperature": "Sampling",
        "beams": "Beam search (`encoder_decoder` only)",
    }

    prompt: str = Field("", description="Text to continue. With `chat`, the user's message.")
    chat: bool = Field(False, description="Wrap the prompt as a user message and generate the assistant's answer.")
    weights: OptionalPath = Field(
        None,
        description="A checkpoint, or the `pretrain/` or `finetune/NAME/` folder of a run. Defaults to the weights "
        "that this run's `stage` ended with or, while it trains, its newest checkpoint.",
    )
    stage: str | None = Field(
        None,
        description="Which of this run's weights to use: `pretrain`, the name of a fine-tuning stage, or `finetune` "
        "for the last one. Defaults to the last fine-tuning stage that has weights, and otherwise to the pretrained "
        "weights.",
    )
    max_new_tokens: int = Field(64, gt=0, description="Maximum number of new tokens.")
    crop: bool = Field(
        False,
        description="Keep generating beyond the context length. From there on, the model reads only the last tokens "
        "that fit, without the cache. `false` stops at the context length.",
    )
    only_new: NonIdentity[bool] = Field(False, description="Print the new text without the prompt.")
    temperature: float = Field(
        0.8, ge=0, description="Sampling temperature, which divides the logits. 0 selects greedy decoding."
    )
    top_k: int = Field(0, ge=0, description="Sample only from this many of the most likely tokens. 0 disables this.")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Sample only from the smallest set of most likely tokens whose probabilities sum to at least this. "
        "1 disables this.",
    )
    samples: int = Field(
        1,
        gt=0,
        description="Number of completions to sample in one batch. Completion N, counting from 0, uses the seed `seed` "
        "+ N.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed for sampling.")
    speculative: bool = Field(
        False,
        description="Draft tokens with multi-token prediction and verify them in one pass. Produces the same text as "
        "greedy decoding. Requires `temperature: 0`.",
    )
    beams: int = Field(1, gt=0, description="Number of beams in beam search. 1 selects greedy decoding.")
    length_penalty: float = Field(
        0.6, ge=0, description="Length penalty of GNMT (alpha). Higher values favor longer outputs."
    )

    @model_validator(mode="after")
    def _fits(self) -> "GenerateSection":
        if self.weights and self.stage:
            raise ValueError(f"stage ({self.stage}) selects weights of this run: leave out either stage or weights")
        if self.speculative and self.temperature:
            raise ValueError(
                f"temperature ({self.temperature:g}) must be 0 with speculative: drafts are verified greedily"
            )
        if self.samples > 1 and (self.speculative or not self.temperature):
            raise ValueError(f"samples ({self.samples}) needs temperature above 0: greedy completions are identical")
        if self.speculative and self.crop:
            raise ValueError("crop does not work with speculative: leave one of them out")
        return self
