"""What every section of a recipe shares: frozen, typed, unknown keys refused, identity told from topology."""

from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class _NotIdentity:
    """Marks a key whose change does not make another run (topology, logging, retention)."""

    def __repr__(self) -> str:
        return "free"


#: ``Free[int]``: an int that may change between two starts of the same run.
Free = Annotated[T, _NotIdentity()]


class Section(BaseModel):
    """A section of the recipe. Instances are immutable and compare by value."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)

    def identity(self) -> dict[str, Any]:
        """The keys that make this section what it is, as JSON-ready values; ``Free`` keys are left out."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            if any(isinstance(mark, _NotIdentity) for mark in field.metadata):
                continue
            value = getattr(self, name)
            out[name] = _plain(value)
        return out

    @classmethod
    def keys(cls, prefix: str = "") -> list[str]:
        """Every dotted key of the section and of the sections in it."""
        found: list[str] = []
        for name, field in cls.model_fields.items():
            kinds = [field.annotation, *get_args(field.annotation)]
            inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, Section)), None)
            found.append(prefix + name)
            if inner is not None:
                found.extend(inner.keys(f"{prefix}{name}."))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        # As JSON spells them: read back, they sort as they did when they were written.
        return {str(k): _plain(v) for k, v in value.items()}
    return value
