"""Read a recipe: YAML, then ``section.key=value`` overrides, then the typed classes; every fault is one clear line."""

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from configs.errors import RequestError
from configs.schema import Recipe
from configs.schema.base import Section


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 3e-4 as a string; recipes mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
# The integer resolver must be asked first, or 256 would be the float 256.0.
for _resolvers in _Loader.yaml_implicit_resolvers.values():
    _resolvers.sort(key=lambda entry: entry[0] == "tag:yaml.org,2002:float")


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file with ``section.key=value`` overrides applied.

    Raises:
        RequestError: no such file, not YAML, an unknown key, a wrong type or an impossible combination.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such recipe; `ls configs` shows those that come with Millrace") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RequestError(f"{path}: a recipe is a mapping of sections (run, data, tokenizer, model, train, ...)")
    for override in overrides or []:
        _override(tree, override)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RequestError(_explain(error, path, overrides or [])) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(f"{override!r} is not an override: write section.key=value")
    try:
        value = text if _takes_text(key) and text != "null" else yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        value = text
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[leaf] = value


def _speaks_of(override: str, key: str) -> bool:
    """Whether an override sets the key, a part of it, or the section it stands in."""
    name = override.split("=")[0]
    return f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")


def _takes_text(key: str) -> bool:
    """Whether a key holds text, which an override gives as it stands: in a prompt ``yes`` and ``# note`` are words."""
    kind: Any = Recipe
    for part in key.split("."):
        sections = [k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, Section)]
        field = sections[0].model_fields.get(part) if sections else None
        if field is None:
            return False
        kind = field.annotation
    return kind is str or (str in get_args(kind) and type(None) in get_args(kind))


def _first_key(section: str) -> str:
    """The first key of a section."""
    every: list[str] = Recipe.keys()
    return next((key for key in every if key.startswith(f"{section}.")), f"{section}.KEY").removeprefix(f"{section}.")


def _explain(error: ValidationError, path: Path, overrides: list[str]) -> str:
    """One line for the first fault: where it stands, what is wrong, and the nearest valid key."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    given = next((override for override in overrides if _speaks_of(override, key)), None)
    where = f"override {given}" if given else str(path)
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Recipe.keys(), n=1, cutoff=0.0)
        return f"{where}: unknown key {key}; the nearest key is {near[0]}"
    if fault["type"] == "missing":
        return f"{where}: {key} is missing"
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: {key} is a section, not {fault['input']!r}: set keys of it, such as {key}.{_first_key(key)}"
    if fault["type"] == "tuple_type":
        return f"{where}: {key}: a list is wanted, such as [{fault['input']}]"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {key + '.' if key else ''}{message}" if key else f"{where}: {message}"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}, not {fault['input']!r}"
