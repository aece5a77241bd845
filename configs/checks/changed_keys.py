"""Descriptions of the differences between two identities or inputs of an artefact, in terms of the recipe."""

import re
from typing import Any

from artefacts.differences import differences

#: Identity key -> recipe key, where their names differ.
_KEYS = {
    "sources": "data.sources",
    "clean": "data.clean",
    "tokens": "data.tokens",
    "examples": "finetune.examples",
    "max_length": "finetune.max_length",
    "method": "finetune.method",
    "seed": "run.seed",
    "context_length": "train.context_length",
    "validation_fraction": "data.tokens.validation_fraction",
    "classes": "model.classes",
    "mixture": "data.sources weights:",
}
#: Identity keys and inputs whose values are not shown, with the text to show instead.
_WITHOUT_VALUES = {
    "start": "different weights to start from",
    "weights": "different weights to start from",
    "backbone": "different weights of the backbone",
    "adapter": "a different adapter to start from",
    "documents": "different documents",
    "tokenizer": "a different tokenizer",
    "tokens": "different tokens",
    "packing": "a different packing of the tokens",
    "examples": "different examples",
    "template": "a different chat template",
    "checkpoint": "a different checkpoint",
}


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


def changed_input(name: str) -> str:
    """Describe a changed input. The input ``SOURCE: files`` is the fingerprint of a source's files."""
    return _WITHOUT_VALUES.get(name) or f"other content of the source {name.partition(':')[0]}"
