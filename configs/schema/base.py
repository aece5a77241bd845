"""The base class of recipe sections. Sections are frozen and typed, reject unknown keys, and define their identity."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.fields import FieldInfo

T = TypeVar("T")


class _NonIdentityMark:
    """Marks a key that may change between two starts of the same run (topology, logging, retention)."""

    def __repr__(self) -> str:
        return "non-identity"


#: ``NonIdentity[int]``: an int that may change between two starts of the same run.
NonIdentity = Annotated[T, _NonIdentityMark()]


def _expanded(path: str | None) -> str | None:
    """Expand ``~`` and ``$NAME`` in a path as a shell does. URLs stay unchanged.

    If a variable is not set, but a file or folder with exactly this path exists, ``$NAME`` is kept.

    Raises:
        ValueError: a variable is not set, or the user after ``~`` does not exist.
    """
    if path is None or "://" in path:
        return path
    for name in (braced or plain for braced, plain in re.findall(r"\$(?:\{(\w+)\}|(\w+))", path)):
        if name not in os.environ and not os.path.lexists(path):
            raise ValueError(f"{path}: the environment variable {name} is not set")
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 - text, may not be a path on this machine
    if expanded.startswith("~"):
        raise ValueError(f"{path}: this machine has no user {expanded[1:].partition('/')[0]}")
    return expanded


#: Types of keys that hold a path to a file or folder. Some also accept a URL.
PathText = Annotated[str, AfterValidator(_expanded)]
OptionalPath = Annotated[str | None, AfterValidator(_expanded)]


class Section(BaseModel):
    """A section of the recipe. Instances are immutable and compare by value.

    Attributes:
        headings: key -> heading of the group of keys in docs/recipe.md that starts with this key. Empty if the keys are
            not grouped.
    """

    headings: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)

    def identity(self) -> dict[str, Any]:
        """Return the keys that define the run, with JSON-ready values. ``NonIdentity`` keys are left out."""
        out: dict[str, Any] = {}
        for name, (attribute, field) in self.named_fields().items():
            if not is_identity(field):
                continue
            value = getattr(self, attribute)
            out[name] = _plain(value)
        return out

    @classmethod
    def named_fields(cls) -> dict[str, tuple[str, FieldInfo]]:
        """Return a map from recipe key to (attribute name, field). The attribute name may differ from the key."""
        return {field.alias or name: (name, field) for name, field in cls.model_fields.items()}

    @classmethod
    def keys(cls, prefix: str = "") -> list[str]:
        """List every dotted key of the section and its subsections. NAME stands for a name that the user chooses."""
        keys: list[str] = []
        for name, (_, field) in cls.named_fields().items():
            keys.append(prefix + name)
            for inner in inner_sections(field):
                keys.extend(inner.keys(f"{prefix}{name}.{'NAME.' if has_names(field) else ''}"))
        return list(dict.fromkeys(keys))


def is_identity(field: FieldInfo) -> bool:
    """Return whether changing a key defines a different run."""
    return not any(isinstance(mark, _NonIdentityMark) for mark in field.metadata)


def inner_sections(field: FieldInfo) -> list[type[Section]]:
    """Return all section classes that a key may hold. Empty if the key holds a value."""
    sections: list[type[Section]] = []
    kinds: list[Any] = [field.annotation]
    for kind in kinds:
        kinds.extend(get_args(kind))
        if isinstance(kind, type) and issubclass(kind, Section):
            sections.append(kind)
    return sections


def has_names(field: FieldInfo) -> bool:
    """Return whether a key holds several values under names that the user chooses."""
    return get_origin(field.annotation) is dict


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        # Use JSON's string keys, so that the order is the same after a round trip.
        return {str(k): _plain(v) for k, v in value.items()}
    return value
