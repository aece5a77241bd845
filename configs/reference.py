"""Generate docs/recipe.md from the schema: every recipe key with its type, default, bounds and meaning."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from artefacts.checkout import CHECKOUT
from configs.identities import NOT_IN_DOCUMENTS
from configs.schema import Recipe
from configs.schema.base import Section, inner_sections, is_identity
from configs.schema.data import READ_BY, SourceSection
from configs.schema.models import FAMILIES

PAGE = CHECKOUT / "docs" / "recipe.md"
WRITE_PAGE = "python -m configs reference > docs/recipe.md"

#: Sections with the same keys as another section: key prefix -> prefix of the section that documents the keys.
SAME_KEYS = {"data.sources.NAME.": "data.source.", "evaluate.texts.NAME.": "data.source.", "model.backbone.": "model."}

Effect = Literal[
    "same", "run", "data", "examples", "finetune", "evaluation", "language_evaluation", "content", "folder"
]
#: Effect of changing a key: a word for the table, and a sentence.
EFFECTS: dict[Effect, tuple[str, str]] = {
    "same": ("–", "You can change it and resume the same run."),
    "run": ("run", "A different value makes it a different run."),
    "data": ("data", "A different value rebuilds the data, which makes it a different run."),
    "examples": ("examples", "A different value rebuilds the chat examples and restarts fine-tuning."),
    "finetune": (
        "fine-tuning",
        "A different value defines a different fine-tuning run. The pretrained weights are kept.",
    ),
    "evaluation": ("evaluation", "The run stays the same. `make evaluate` evaluates it again."),
    "language_evaluation": (
        "evaluation of language models",
        "The run stays the same. `make evaluate` evaluates a language model again; for other models, nothing changes.",
    ),
    "content": ("content", "Only the file's content matters. You can move it to a different path."),
    "folder": ("folder", "A different value means a different folder, and therefore a different run."),
}
_FOLDERS = ("run.name", "run.root", "data.root")
#: Keys for which the content at the path matters, not the path itself. Source keys are handled separately.
_CONTENT = (
    "data.clean.decontaminate.path",
    "tokenizer.path",
    "finetune.examples.path",
    "finetune.examples.revision",
    "model.weights",
)
#: Prefix of a key -> effect, for keys that are part of an identity. The first match counts.
_EFFECTS_BY_SECTION: tuple[tuple[str, Effect], ...] = (
    ("launch.", "same"),
    ("run.seed", "data"),
    ("data.source.weight", "run"),
    ("data.", "data"),
    ("tokenizer.", "data"),
    ("finetune.examples.", "examples"),
    ("finetune.max_length", "examples"),
    ("finetune.", "finetune"),
    ("evaluate.", "evaluation"),
    ("generate.beams", "evaluation"),
    ("generate.length_penalty", "evaluation"),
    ("generate.", "language_evaluation"),
    ("", "run"),
)
#: Bounds of this size or larger are not shown, because they exist only to keep numbers within 32 or 64 bits.
_HUGE = 2**31 - 1


@dataclass(frozen=True)
class Key:
    """A key that holds a value.

    Attributes:
        name: the dotted key.
        family: the model family, for keys in a model section. Otherwise empty.
        field: the field in the schema.
        section: the class that has the field.
        heading: heading of the group of keys that this key belongs to. May be empty.
    """

    name: str
    family: str
    field: FieldInfo
    section: type[Section]
    heading: str

    @property
    def type(self) -> str:
        """The type and bounds, and an example if the schema has one."""
        example = f"such as `{spelled(self.field.examples[0])}`" if self.field.examples else ""
        return ", ".join(
            filter(None, (_type(self.field.annotation, self.field.metadata), _bounds(self.field), example))
        )

    @property
    def default(self) -> str:
        if self.field.default is PydanticUndefined:
            return "required"
        return "none" if self.field.default is None else spelled(self.field.default)

    @property
    def has_value_as_default(self) -> bool:
        """Whether the key has a default other than None."""
        return self.field.default is not PydanticUndefined and self.field.default is not None

    @property
    def meaning(self) -> str:
        return self.field.description or ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The source kinds that read this key. Empty if all kinds read it, or if it is not a source key."""
        return READ_BY.get(self.name.rpartition(".")[2], ()) if self.section is SourceSection else ()

    @property
    def effect(self) -> Effect:
        """The effect of changing the key."""
        if self.name in _FOLDERS:
            return "folder"
        leaf = self.name.rpartition(".")[2]
        in_source = self.section is SourceSection and leaf in NOT_IN_DOCUMENTS
        if self.name in _CONTENT or (in_source and leaf != "weight"):
            return "content"
        if not is_identity(self.field):
            return "same"
        return next(effect for prefix, effect in _EFFECTS_BY_SECTION if self.name.startswith(prefix))


@dataclass(frozen=True)
class Page:
    """A section of the recipe, with its own keys.

    Attributes:
        name: the section's dotted key.
        family: the model family, for a model section. Otherwise empty.
        section: the section's class.
        keys: the keys that hold values.
        note: a sentence about omitting the section. May be empty.
    """

    name: str
    family: str
    section: type[Section]
    keys: tuple[Key, ...]
    note: str

    @property
    def title(self) -> str:
        is_family = self.family and self.name == "model"
        return f"`{self.name}` with `family: {self.family}`" if is_family else f"`{self.name}`"

    @property
    def anchor(self) -> str:
        """The anchor that GitHub generates for the heading."""
        kept = "".join(char for char in self.title.lower() if char.isalnum() or char in " -_")
        return kept.replace(" ", "-")

    @property
    def intro(self) -> str:
        doc = inspect.cleandoc(self.section.__doc__ or "").replace("``", "`")
        return f"{doc}\n\n{self.note}" if self.note else doc


@cache
def pages() -> tuple[Page, ...]:
    """Return every section in the order of the schema, including the sections of all model families."""
    return tuple(page for name, (_, field) in Recipe.named_fields().items() for page in _pages(name, field, ""))


@cache
def keys() -> tuple[Key, ...]:
    """Return every key in the order of the pages. A key that several model families share appears once per family."""
    return tuple(key for page in pages() for key in page.keys)


def _pages(name: str, field: FieldInfo, family: str) -> Iterator[Page]:
    if f"{name}." in SAME_KEYS or f"{name}.NAME." in SAME_KEYS:
        return
    for section in inner_sections(field):
        section_family = next((known for known, cls in FAMILIES.items() if cls is section), family)
        yield Page(name, section_family, section, tuple(_keys(name, section, section_family)), field.description or "")
        for inner, (_, inner_field) in section.named_fields().items():
            yield from _pages(f"{name}.{inner}", inner_field, section_family)


def _keys(prefix: str, section: type[Section], family: str) -> Iterator[Key]:
    heading = ""
    for name, (_, field) in section.named_fields().items():
        heading = section.headings.get(name, heading)
        if not inner_sections(field) or f"{prefix}.{name}." in SAME_KEYS or f"{prefix}.{name}.NAME." in SAME_KEYS:
            yield Key(f"{prefix}.{name}", family, field, section, heading)


def _type(kind: Any, metadata: list[Any]) -> str:
    """Describe a value's type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if any(isinstance(mark, AfterValidator) and "path" in str(inspect.signature(mark.func)) for mark in metadata):
        return "path"
    if origin is Literal:
        return ", ".join(f"`{spelled(value)}`" for value in parts)
    if origin is Annotated:
        return _type(parts[0], [])
    if origin is tuple:
        inner_type = _type(parts[0], [])
        return f"list of {inner_type}s" if inner_type in ("number", "integer") else f"list of {inner_type}"
    if inner := [part for part in parts if isinstance(part, type) and issubclass(part, Section)]:
        return "sections by name" if origin is dict else f"section {inner[0].__name__}"
    if origin is dict:
        return "map"
    if parts:
        return " or ".join(dict.fromkeys(_type(part, []) for part in parts if part is not NoneType))
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(kind, "section")


def _bounds(field: FieldInfo) -> str:
    """Describe a number's range in words. Empty if any number is allowed."""
    bounds: dict[type, Any] = {
        type(mark): getattr(mark, type(mark).__name__.lower())
        for mark in field.metadata
        if isinstance(mark, Ge | Gt | Le | Lt)
    }
    limits = {kind: spelled(bound) for kind, bound in bounds.items() if bound < _HUGE}
    if Ge in limits and Le in limits:
        return f"{limits[Ge]} to {limits[Le]}"
    words = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
    return ", ".join(f"{words[kind]} {limits[kind]}" for kind in words if kind in limits)


def spelled(value: Any) -> str:
    """Return a value as it is written in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return spelled(int(value)) if value == int(value) and value >= 1 else f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(spelled, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{spelled(name)}: {spelled(inner)}" for name, inner in value.items()) + "}"
    return str(value)


_HEAD = """# Recipe reference

<!-- Written by `{command}`. Do not edit. -->

A recipe is a YAML file with these sections. Keys that you leave out take their default values. To override a key on the
command line, write `section.key=value`. `make explain KEY=section.key` prints this page's entry for a key.

The column *Changes* shows what happens to an existing run if you change the key:

| Changes | |
|---|---|
{effects}

If the run already has weights, a change that would make it a different run is rejected. The message shows the key and
both values. Set a different `run.name`, or `run.replace=true`.

In paths, `~` and `$NAME` are expanded. Text values are taken literally, even `on` and `020`. Where a number is
expected, `020`, `0x10`, `1:30` and `yes` are rejected, because YAML parses them differently from how a person reads
them.

## Sections

{contents}
"""


def markdown() -> str:
    """Return the page as Markdown."""
    effects = "\n".join(f"| {word} | {sentence} |" for word, sentence in EFFECTS.values())
    contents = "\n".join(
        f"{'  ' * (page.name.count('.'))}- [{page.title}](#{page.anchor})" for page in pages() if _is_listed(page)
    )
    head = _HEAD.format(command=WRITE_PAGE, effects=effects, contents=contents)
    return "\n".join([head, *map(_section, pages())])


def _is_listed(page: Page) -> bool:
    return page.name.count(".") < 2


def _section(page: Page) -> str:
    level = "#" * min(4, 2 + page.name.count("."))
    lines = [f"{level} {page.title}", "", page.intro, ""]
    heading = None
    for key in page.keys:
        if key.heading != heading:
            heading = key.heading
            title = [f"**{heading}**", ""] if heading else []
            lines += [*([""] if lines[-1] else []), *title, "| Key | Type | Default | Changes | Meaning |"]
            lines.append("|---|---|---|---|---|")
        leaf, default = key.name.rpartition(".")[2], key.default
        shown = f"`{default or '(empty)'}`" if key.has_value_as_default else default
        readers = f" Read by {', '.join(f'`{kind}`' for kind in key.kinds)}." if key.kinds else ""
        row = (f"`{leaf}`", key.type, shown, EFFECTS[key.effect][0], key.meaning + readers)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])
