"""Where chat examples come from, and how they become tokens."""

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from configs.schema.base import OptionalPath, PathText, Section

#: Names that `fields` accepts -> the role of the field. The other names are those of common formats.
FIELD_ROLES = {
    "prompt": "prompt",
    "instruction": "prompt",
    "question": "prompt",
    "input": "input",
    "answer": "answer",
    "output": "answer",
    "completion": "answer",
    "system": "system",
    "messages": "messages",
    "conversations": "messages",
    "role": "role",
    "from": "role",
    "content": "content",
    "value": "content",
    "text": "text",
    "chosen": "chosen",
    "rejected": "rejected",
}
#: Kinds of examples that have been renamed -> the new name.
_RENAMED = {"instructions": "files"}


class ExamplesSection(Section):
    """Where the chat examples come from. [data.md](data.md#chat-examples) describes the formats."""

    headings: ClassVar[dict[str, str]] = {
        "kind": "Source",
        "format": "Records (`files` and `hub`)",
        "template": "Conversion to tokens",
        "held_out_fraction": "Selection",
    }

    kind: Literal["pydocs", "files", "hub"] = Field(
        "pydocs",
        description="Kind of examples. `pydocs`: questions about Python functions, generated from installed packages. "
        "`files`: your own records in JSON Lines, JSON, CSV or Parquet. `hub`: a dataset repository.",
    )
    path: OptionalPath = Field(
        None,
        description="For `files`: a file, folder, glob or URL. For `hub`: a repository's name on the Hugging Face Hub, "
        "or a local folder with the same layout.",
    )
    split: str = Field("train", description="Dataset split to load. Read by `hub`.")
    config: str | None = Field(
        None, description="Dataset configuration to load. Defaults to the repository's default. Read by `hub`."
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit. Defaults to the newest commit, which is recorded in the manifest. Read by "
        "`hub`.",
    )
    format: (
        Literal["alpaca", "messages", "sharegpt", "prompt_completion", "question_answer", "text", "preference"] | None
    ) = Field(None, description="The records' format. By default, it is detected in each file and printed.")
    fields: dict[str, str] = Field(
        {},
        description="The file's field names, where they differ from the format's: a map from role to field name. The "
        "roles are `prompt`, `input`, `answer`, `system`, `messages`, `role`, `content`, `text`, `chosen` and "
        "`rejected`.",
        examples=[{"prompt": "question", "answer": "reply"}],
    )
    rejected: Literal["verbose"] | None = Field(
        None,
        description="How `method: dpo` makes rejected answers for records that have only one answer. `verbose`: the "
        "same answer between phrases that say nothing, so that the model learns to be brief. By default, the records "
        "themselves have a chosen and a rejected answer.",
    )
    template: PathText = Field(
        "millrace",
        description="Chat template: `millrace`, `chatml`, `instruction` (`### Instruction:`, `### Response:`), or the "
        "path of a Jinja template like those of transformers. [chat-format.md](chat-format.md) describes them.",
    )
    loss_on: Literal["assistant", "all"] = Field(
        "assistant",
        description="What is learned. `assistant`: the assistant's messages and the tokens that end them. `all`: the "
        "complete conversation. Records of plain text are always learned completely.",
    )
    too_long: Literal["drop", "cut", "split"] = Field(
        "drop",
        description="What happens to examples with more than `max_length` tokens. `drop`: they are dropped. `cut`: "
        "their first `max_length` tokens are kept. `split`: conversations are split between turns, and plain text "
        "anywhere.",
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

    @field_validator("kind", mode="before")
    @classmethod
    def _current_name(cls, kind: object) -> object:
        if isinstance(kind, str) and kind in _RENAMED:
            raise ValueError(f"kind={kind} is now called {_RENAMED[kind]}: set kind={_RENAMED[kind]}")
        return kind

    @field_validator("fields")
    @classmethod
    def _known_roles(cls, fields: dict[str, str]) -> dict[str, str]:
        for name in fields:
            if name not in FIELD_ROLES:
                raise ValueError(f"{name} is not a role of a field: the roles are {', '.join(sorted(FIELD_ROLES))}")
        roles = [FIELD_ROLES[name] for name in fields]
        if doubled := next((name for name in fields if roles.count(FIELD_ROLES[name]) > 1), None):
            raise ValueError(f"{doubled} and another name stand for the same role ({FIELD_ROLES[doubled]})")
        return fields

    @model_validator(mode="after")
    def _fits(self) -> "ExamplesSection":
        if self.kind != "pydocs" and not self.path:
            raise ValueError(f"path is missing: kind={self.kind} reads the examples from it")
        if self.kind == "pydocs" and self.path:
            raise ValueError(f"path ({self.path}) is not read by the default, kind=pydocs: set kind=files or kind=hub")
        hub, files = ("hub",), ("files", "hub")
        read_by: dict[str, tuple[str, ...]] = {"split": hub, "config": hub, "revision": hub}
        read_by |= {"format": files, "fields": files}
        for key, kinds in read_by.items():
            value = getattr(self, key)
            if self.kind not in kinds and value != ExamplesSection.model_fields[key].default:
                readers = " and ".join(f"kind={kind}" for kind in kinds)
                raise ValueError(f"{key} ({value}) is read only by {readers}, not by kind={self.kind}: leave it out")
        return self

    @property
    def field_names(self) -> dict[str, str]:
        """The file's field name of each role in `fields`."""
        return {FIELD_ROLES[name]: field for name, field in self.fields.items()}
