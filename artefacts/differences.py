"""Differences between two identities, reported as recipe keys."""

import re
from typing import Any

#: Identity key -> recipe key, where their names differ.
_KEYS = {
    "sources": "data.sources",
    "clean": "data.clean",
    "tokens": "data.tokens",
    "examples": "finetune.examples",
    "max_length": "finetune.max_length",
    "seed": "run.seed",
    "context_length": "train.context_length",
    "validation_fraction": "data.tokens.validation_fraction",
    "classes": "model.classes",
    "mixture": "data.sources weights:",
}
#: Identity keys and inputs whose values are not shown, with the text to show instead.
_WITHOUT_VALUES = {
    "pretrain": "different pretrained weights",
    "weights": "different pretrained weights",
    "backbone": "different weights of the backbone",
    "documents": "different documents",
    "tokenizer": "a different tokenizer",
    "tokens": "different tokens",
    "packing": "a different packing of the tokens",
    "examples": "different examples",
    "checkpoint": "a different checkpoint",
}
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


def explained(
    identity: dict[str, Any], inputs: dict[str, str], new_identity: dict[str, Any], new_inputs: dict[str, str]
) -> str:
    """Describe how an artefact's identity and inputs differ from the new ones. Empty if they are equal.

    Recipe keys are shown with both values, as in ``train.steps 100 -> 150``. Inputs are listed by name only.
    """
    keys = changed_keys(identity, new_identity)
    others = [_of_input(name) for name in sorted({*inputs, *new_inputs}) if inputs.get(name) != new_inputs.get(name)]
    lines = list(dict.fromkeys([*keys, *others]))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return ", ".join(lines[:_SHOWN]) + more


def changed_keys(identity: dict[str, Any], new_identity: dict[str, Any]) -> list[str]:
    """List the recipe keys whose values differ between two identities of an artefact, with both values."""
    kinds = [[*sections.get("sources", {})] for sections in (identity, new_identity)]
    if all(len(kind) == 1 for kind in kinds) and kinds[0] != kinds[1] and "ids" not in {*identity, *new_identity}:
        # A single source is named after its kind. All other differences follow from its kind.
        return [f"data.source.kind {kinds[0][0]} -> {kinds[1][0]}"]
    return [_in_recipe(line, "ids" not in new_identity) for line in differences(identity, new_identity)]


def _in_recipe(line: str, single_source: bool) -> str:
    key, _, values = line.partition(" ")
    first, dot, rest = key.partition(".")
    if first in _WITHOUT_VALUES and not dot:
        return _WITHOUT_VALUES[first]
    named = f"{_KEYS.get(first, first)}{dot}{rest}"
    if single_source:
        named = re.sub(r"^data\.sources\.[^.]+", "data.source", named)
    return f"{named} {values}"


def _of_input(name: str) -> str:
    """Describe a changed input. The input ``SOURCE: files`` is the fingerprint of a source's files."""
    return _WITHOUT_VALUES.get(name) or f"other content of the source {name.partition(':')[0]}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{…}"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
