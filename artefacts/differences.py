"""Differences between two identities, as dotted keys with both values."""

from collections.abc import Callable
from typing import Any

#: Maximum number of differences that a message lists.
_SHOWN = 3
_LONGEST_VALUE = 40


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """List the dotted keys whose values differ between two nested mappings: ``model.hidden_size 192 -> 256``."""
    lines: list[str] = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key} {_value(old)} -> {_value(new)}")
    return lines


def first_difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the first of ``differences``, or an empty string if there are none."""
    return next(iter(differences(before, after)), "")


def _any_input(name: str) -> str:
    return f"a different {name}"


_changed_keys: Callable[[dict[str, Any], dict[str, Any]], list[str]] = differences
_changed_input: Callable[[str], str] = _any_input


def install(
    changed_keys: Callable[[dict[str, Any], dict[str, Any]], list[str]], changed_input: Callable[[str], str]
) -> None:
    """Let ``explained`` describe differences in the words of recipes. See ``configs.command``.

    Args:
        changed_keys: lists the keys whose values differ between two identities, with both values.
        changed_input: describes a changed input, given its name.
    """
    global _changed_keys, _changed_input
    _changed_keys, _changed_input = changed_keys, changed_input


def explained(
    identity: dict[str, Any], inputs: dict[str, str], new_identity: dict[str, Any], new_inputs: dict[str, str]
) -> str:
    """Describe how an artefact's identity and inputs differ from the new ones. Empty if they are equal.

    Keys are shown with both values, as in ``train.steps 100 -> 150``. Inputs are listed by name only.
    """
    keys = _changed_keys(identity, new_identity)
    others = [
        _changed_input(name) for name in sorted({*inputs, *new_inputs}) if inputs.get(name) != new_inputs.get(name)
    ]
    lines = list(dict.fromkeys([*keys, *others]))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{…}"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
