"""Lookup of dotted recipe keys in the schema."""

from typing import Any, NamedTuple, get_args

from configs.schema import Recipe
from configs.schema.base import Section, has_names, inner_sections
from configs.schema.finetune import FinetuneSection


class Key(NamedTuple):
    """A recipe key as the schema declares it.

    Attributes:
        generic: the key, with NAME in place of a name that the user chose.
        name: the name that the user chose. Empty if there is none.
        kind: the type annotation of the key's value. None if there is no such key.
        examples: valid values, if the schema has any.
    """

    generic: str
    name: str
    kind: Any
    examples: list[Any]


def look_up(key: str) -> Key:
    """Look up a dotted key in the schema."""
    sections: list[type[Section]] = [Recipe]
    parts: list[str] = []
    kind: Any = None
    examples: list[Any] = []
    name, named = "", False
    every = key.split(".")
    for index, part in enumerate(every):
        if named:
            parts.append("NAME")
            name, kind, named = part, sections[0], False
            continue
        if parts == ["finetune"] and index + 1 < len(every) and part not in FinetuneSection.named_fields():
            name = part  # of a stage
            continue
        parts.append(part)
        # A model section may belong to any family, so use the first family that has the key.
        fields = (section.named_fields().get(part, ("", None))[1] for section in sections)
        field = next(filter(None, fields), None)
        sections, kind = (inner_sections(field), field.annotation) if field else ([], None)
        examples = (field and field.examples) or []
        named = field is not None and bool(sections) and has_names(field)
    return Key(".".join(parts), name, kind, examples)


def generic_key(key: str) -> str:
    """Return a dotted key with NAME in place of a name that the user chose."""
    return look_up(key).generic


def kind_of(key: str) -> Any:
    """Return the annotation of a dotted key, or None if there is no such key."""
    return look_up(key).kind


def takes_text(key: str) -> bool:
    """Return whether a key holds text. Overrides pass text literally, because a prompt may be ``yes`` or ``# note``."""
    kind = kind_of(key)
    return kind is str or (str in get_args(kind) and type(None) in get_args(kind))


def keys_of(section: str) -> list[str]:
    """List a section's keys, without the section's name."""
    prefix = f"{look_up(section).generic}."
    every: list[str] = Recipe.keys()
    return [key.removeprefix(prefix) for key in every if key.startswith(prefix)]
