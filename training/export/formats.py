"""The released format of each model family that has one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from artefacts.errors import RequestError
from configs.schema.models import ModelSection
from training.export import deepseek, gpt2
from training.export.names import NameTable


@dataclass(frozen=True)
class Format:
    """A family's weight names and its ``config.json``.

    Attributes:
        table: names of the weights in memory and on disk.
        released_config: converts a model section and its vocabulary size to ``config.json``. Raises RequestError if the
            format does not support the model.
        model_section: the inverse conversion. Raises RequestError if the family does not support the model.
    """

    table: NameTable
    released_config: Callable[[Any, int], dict[str, Any]]
    model_section: Callable[[dict[str, Any]], Any]


_FORMATS = {
    "deepseek": Format(deepseek.TABLE, deepseek.released_config, deepseek.model_section),
    "gpt": Format(gpt2.TABLE, gpt2.released_config, gpt2.model_section),
}


def format_of(section: ModelSection) -> Format:
    """Return the released format of a model's family.

    Raises:
        RequestError: the family has no released format.
    """
    family = section.identity()["family"]
    if family not in _FORMATS:
        raise RequestError(
            f"model.family={family} has no released format: {' and '.join(_FORMATS)} can be exported and imported"
        )
    return _FORMATS[family]


def table_of(section: ModelSection) -> NameTable:
    """Return the name table of a model's family, which is empty if the family has no released format."""
    family = section.identity()["family"]
    return _FORMATS[family].table if family in _FORMATS else NameTable(f"the {family} family")
