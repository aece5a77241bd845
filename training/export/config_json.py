"""Reads a model directory's ``config.json`` and converts it to a recipe's model section."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from artefacts.errors import RequestError
from configs.schema.models import ModelSection

NAME = "config.json"
SectionT = TypeVar("SectionT", bound=ModelSection)


def read(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a model directory.

    Raises:
        RequestError: the file is missing or damaged, or the weights are quantized.
    """
    path = folder / NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{folder}: there is no {NAME}: pass a model directory in Hugging Face's layout") from None
    except (ValueError, OSError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict):
        raise RequestError(f"{path}: not a JSON object")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise RequestError(
            f"{path}: the weights are quantized by quantization_config ({method or 'unknown method'}): convert "
            "them to bf16 (for DeepSeek's fp8, with fp8_cast_bf16.py from its repository) and remove that key"
        )
    return config


def require(config: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Check the keys that change the model's computation.

    A missing key counts as the supported value, and null counts as false.

    Raises:
        RequestError: a key has an unsupported value.
    """
    for key, value in supported.items():
        if config.get(key, value) != value and not (value is False and config[key] is None):
            raise RequestError(f"{NAME}: {key} is {config[key]!r}, but only {value!r} is supported")


def section(kind: type[SectionT], fields: Mapping[str, Any], names: Mapping[str, str] | None = None) -> SectionT:
    """Build a recipe's model section from these fields.

    ``names`` maps a field to its name in ``config.json`` if the two names differ.

    Raises:
        RequestError: a field is missing or invalid for the family; the message names the key.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        fault = error.errors()[0]
        place = [(names or {}).get(str(part), str(part)) for part in fault["loc"]]
        message = fault["msg"].removeprefix("Value error, ")
        raise RequestError(": ".join([NAME, *([".".join(place)] if place else []), message])) from None
