"""What every section of a recipe shares: frozen, typed, unknown keys refused, identity told from topology."""

import os
import re
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic.fields import FieldInfo

T = TypeVar("T")


class _NonIdentityMark:
    """Marks a key whose change does not make another run (topology, logging, retention)."""

    def __repr__(self) -> str:
        return "free"


#: ``NonIdentity[int]``: an int that may change between two starts of the same run.
NonIdentity = Annotated[T, _NonIdentityMark()]


def _expanded(path: str | None) -> str | None:
    """A path with ``~`` and ``$NAME`` as a shell would have them; a URL as it is.

    A name with a dollar that is no variable's is a name where a file or folder is called so.
    """
    if path is None or "://" in path:
        return path
    for name in (braced or plain for braced, plain in re.findall(r"\$(?:\{(\w+)\}|(\w+))", path)):
        if name not in os.environ and not os.path.lexists(path):
            raise ValueError(f"{path}: the environment variable {name} is not set")
    expanded = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111 - text, which may be no path of this machine
    if expanded.startswith("~"):
        raise ValueError(f"{path}: this machine has no user {expanded[1:].partition('/')[0]}")
    return expanded


#: Keys that name a file, a folder or, some of them, a URL.
PathText = Annotated[str, AfterValidator(_expanded)]
OptionalPath = Annotated[str | None, AfterValidator(_expanded)]


class Section(BaseModel):
    """A section of the recipe. Instances are immutable and compare by value."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)

    def identity(self) -> dict[str, Any]:
        """The keys that make this section what it is, as JSON-ready values; ``NonIdentity`` keys are left out."""
        out: dict[str, Any] = {}
        for name, (attribute, field) in self.named_fields().items():
            if any(isinstance(mark, _NonIdentityMark) for mark in field.metadata):
                continue
            value = getattr(self, attribute)
            out[name] = _plain(value)
        return out

    @classmethod
    def named_fields(cls) -> dict[str, tuple[str, FieldInfo]]:
        """Key in the recipe -> name of the attribute that holds it, which may be another, and its field."""
        return {field.alias or name: (name, field) for name, field in cls.model_fields.items()}

    @classmethod
    def keys(cls, prefix: str = "") -> list[str]:
        """Every dotted key of the section and of the sections in it; those of sections by name are under NAME."""
        found: list[str] = []
        for name, (_, field) in cls.named_fields().items():
            found.append(prefix + name)
            for inner in inner_sections(field):
                found.extend(inner.keys(f"{prefix}{name}.{'NAME.' if has_names(field) else ''}"))
        return list(dict.fromkeys(found))


def inner_sections(field: FieldInfo) -> list[type[Section]]:
    """The section that a key stands for, or of which it holds several by name, or one of several; none: a value."""
    found: list[type[Section]] = []
    kinds: list[Any] = [field.annotation]
    for kind in kinds:
        kinds.extend(get_args(kind))
        if isinstance(kind, type) and issubclass(kind, Section):
            found.append(kind)
    return found


def has_names(field: FieldInfo) -> bool:
    """Whether a key holds values by names that the user gives."""
    return get_origin(field.annotation) is dict


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        # As JSON spells them: read back, they sort as they did when they were written.
        return {str(k): _plain(v) for k, v in value.items()}
    return value
