"""Recipe loading: parse YAML, apply ``section.key=value`` overrides, validate. Each error is a single line."""

import difflib
import math
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from artefacts.errors import RequestError, utf8_fault
from configs.parsing import recipe_yaml
from configs.parsing.key_lookup import keys_of, kind_of, look_up
from configs.parsing.overrides import overridden
from configs.parsing.recipe_yaml import RecipeYamlError
from configs.schema import Recipe
from configs.schema.finetune import stage_name
from configs.schema.models import FAMILIES, UNKNOWN_FAMILY
from configs.schema.renamed import RENAMED

#: Minimum similarity at which an unknown key counts as a typo of a known one.
_NEAR = 0.7
#: Maximum number of keys that a message lists.
_LISTED = 8
#: Key -> a description of what its pattern allows.
_RULES = {"run.name": "letters, digits, '.', '_' and '-'", "finetune.name": "letters, digits, '_' and '-'"}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Load a recipe from a YAML file, and apply ``section.key=value`` overrides.

    Raises:
        RequestError: the file cannot be read or is not YAML, or the recipe has an unknown key, a value of the wrong
            type, or an invalid combination of keys.
    """
    path = Path(path)
    try:
        tree = recipe_yaml.parse(path.read_text(encoding="utf-8"), kind_of)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such recipe{_suggestion(path)}") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder: name a recipe in it, such as {_some_recipe(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {error}") from None
    except RecipeYamlError as error:
        raise RequestError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RequestError(f"{path}: a recipe is a mapping of sections (run, data, tokenizer, model, train, ...)")
    resolved = overridden(tree, overrides or [])
    if unwritable := _utf8_fault(resolved):
        raise RequestError(f"{path}: {unwritable}")
    try:
        return Recipe.model_validate(resolved)
    except ValidationError as error:
        # If a required key is misspelled, report the unknown key rather than the missing one.
        fault = min(_named(error, resolved), key=lambda fault: fault["type"] != "extra_forbidden")
    override = _at_fault(tree, overrides or [], fault)
    raise RequestError(_explain(fault, f"override {override}" if override else str(path)))


def _suggestion(path: Path) -> str:
    """Suggest a recipe for a path whose folder or suffix may be missing, or say how to list the recipes."""
    name = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    here = [path.with_name(name)] if path.with_name(name).is_file() else []
    near = next(iter([*here, *sorted(Path("configs").rglob(name))]), None)
    return (
        f": did you mean {near}?" if near else "; `ls configs configs/teaching` lists the recipes that Millrace ships"
    )


def _some_recipe(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.yaml"))), folder / "NAME.yaml")


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, including every default."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def as_override(key: str, value: Any) -> str:
    """Return the override that sets a key to this value, quoted for a shell."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    # After a bare scalar, PyYAML appends an end-of-document marker.
    text = " ".join(text.removesuffix("...\n").split())
    override = f"{key}={text}"
    return f"'{override}'" if " " in override else override


def _utf8_fault(value: Any, key: str = "") -> str | None:
    """Describe the first string in a tree that cannot be encoded as UTF-8. Returns None if there is no such string."""
    if isinstance(value, str):
        fault = utf8_fault(value)
        return f"{key}: {fault}" if fault else None
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(f"{key}.{name}" if key else str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list):
        items = [(key, inner) for inner in value]
    return next(filter(None, (_utf8_fault(inner, name) for name, inner in items)), None)


def _at_fault(tree: dict[str, Any], overrides: list[str], fault: ErrorDetails) -> str | None:
    """Return the override that causes an error, or None. Of several, return the first that the error mentions."""
    causes = []
    for place, override in enumerate(overrides):
        others = overrides[:place] + overrides[place + 1 :]
        if _same(fault) not in map(_same, _faults(overridden(tree, others))):
            causes.append(override)
    return min(reversed(causes), key=lambda override: _mentioned(override.partition("=")[0], fault), default=None)


def _faults(tree: dict[str, Any]) -> list[ErrorDetails]:
    try:
        Recipe.model_validate(tree)
    except ValidationError as error:
        return _named(error, tree)
    return []


def _named(error: ValidationError, tree: dict[str, Any]) -> list[ErrorDetails]:
    """Return a recipe's errors. In their locations, a fine-tuning stage's index is replaced by its name.

    A single stage's index is removed instead.
    """
    stages = tree.get("finetune")
    faults = error.errors()
    for fault in faults:
        section, *rest = fault["loc"] or ("",)
        if section == "finetune" and rest and isinstance(rest[0], int):
            listed = stages if isinstance(stages, list) and len(stages) > 1 else []
            name = [stage_name(listed[rest[0]])] if listed and isinstance(listed[rest[0]], dict) else []
            fault["loc"] = (section, *name, *rest[1:])
    return faults


def _same(fault: ErrorDetails) -> tuple[Any, ...]:
    """Return a tuple by which errors are compared. If the invalid value is a section, its content is ignored."""
    return fault["type"], fault["loc"], fault["msg"], None if isinstance(fault["input"], dict) else repr(fault["input"])


def _mentioned(name: str, fault: ErrorDetails) -> float:
    """Return the position at which an error message first names a key, or infinity if it does not.

    The message may name the key in full or relative to its section.
    """
    section = _place(fault)
    message = f"{section} {fault['msg']}"
    keys = "|".join(re.escape(key) for key in (name, name.removeprefix(f"{section}.")))
    match = re.search(rf"(?<![\w.])({keys})(?!\w)", message)
    return match.start() if match else math.inf


def _place(fault: ErrorDetails) -> str:
    """Return the dotted key that an error is about.

    pydantic's location also contains the family after ``model`` and, for a union, the type at the end. Both are
    removed.
    """
    parts = [str(part) for part in fault["loc"]]
    if parts[-1:] and re.fullmatch(r"bool|literal\[.*\]", parts[-1]):
        parts.pop()
    return ".".join(part for index, part in enumerate(parts) if not _is_family(parts, index))


def _is_family(parts: list[str], index: int) -> bool:
    return index > 0 and parts[index - 1] in ("model", "backbone") and parts[index] in FAMILIES


def _nearest(fault: ErrorDetails) -> str:
    """Suggest a key in place of an unknown one. In a model section, suggest only keys of its family."""
    generic, name, *_ = look_up(_place(fault))
    parts = [str(part) for part in fault["loc"]]
    keys: list[str] = Recipe.keys()
    for index, part in enumerate(parts):
        if _is_family(parts, index):
            before = [name for at, name in enumerate(parts[:index]) if not _is_family(parts, at)]
            keys = FAMILIES[part].keys(".".join(before) + ".")
    return f"; {with_name(suggested(generic, keys), generic, name)}"


def with_name(message: str, generic: str, name: str) -> str:
    """Return a message about keys like ``generic`` with the user's name of their stage or source, if any."""
    if name and generic.startswith("finetune."):
        return message.replace("finetune.", f"finetune.{name}.")
    return message.replace(".NAME.", f".{name}.") if name else message


def renamed(key: str) -> str | None:
    """Return the message for a key that was renamed, or None for any other key."""
    return f"unknown key {key}: it was renamed to {RENAMED[key]}" if key in RENAMED else None


def suggested(key: str, keys: list[str]) -> str:
    """Suggest a key similar to an unknown one.

    This is the nearest key in the section or, failing that, keys with the same name in other sections. Otherwise, list
    the section's keys. If the section does not exist either, suggest the nearest of all keys.
    """
    section, dot, leaf = key.rpartition(".")
    leaves = [known.rpartition(".")[2] for known in keys if known.rpartition(".")[0] == section]
    if near := difflib.get_close_matches(leaf, leaves, n=1, cutoff=_NEAR):
        return f"the nearest key is {section}{dot}{near[0]}"
    every: list[str] = Recipe.keys()
    if elsewhere := [known for known in every if known.rpartition(".")[2] == leaf]:
        return f"there is {' and '.join(elsewhere[:3])}"
    if not leaves:
        return f"the nearest key is {difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]}"
    shown = difflib.get_close_matches(leaf, leaves, n=_LISTED, cutoff=0.0)
    what = f"keys of {section}" if section else "sections"
    more = f", … (`make explain{section and f' KEY={section}'}` lists all)" if len(leaves) > _LISTED else ""
    return f"{what} are {', '.join(shown)}{more}"


def _explain(fault: ErrorDetails, where: str) -> str:
    """Describe an error in one line: where it is, what is wrong, and the nearest valid key."""
    key = _place(fault)
    if fault["type"] == "extra_forbidden":
        return f"{where}: {renamed(key) or f'unknown key {key}{_nearest(fault)}'}"
    if fault["type"] == UNKNOWN_FAMILY:
        return f"{where}: {key}.family: {fault['input'].get('family')!r} is {fault['msg']}"
    if fault["type"] == "missing":
        return f"{where}: {key} is missing"
    if fault["type"] in ("model_type", "model_attributes_type"):
        first = next(iter(keys_of(key)), "KEY")
        return f"{where}: {key} is a section, not {fault['input']!r}: set its keys, such as {key}.{first}"
    if fault["type"] == "tuple_type":
        return f"{where}: {key} must be a list, such as [{fault['input']}]"
    if fault["type"] == "string_pattern_mismatch":
        generic, _, _, examples = look_up(key)
        rule = f": use {_RULES[generic]}" if generic in _RULES else ""
        return f"{where}: {key}: {fault['input']!r} is not valid{rule}; examples: {', '.join(examples)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        if not key:
            return f"{where}: {message}"
        # A section's message usually starts with one of its keys.
        begins = isinstance(fault["input"], dict) and re.split(r"[^\w-]", message)[0] in keys_of(key)
        return f"{where}: {key}{'.' if begins else ': '}{message}"
    if message.startswith("Input should be "):
        # Drop pydantic's details on how it tried to parse the value.
        wanted = re.sub(r", (unable to|got a) .*", "", message.removeprefix("Input should be "))
        return f"{where}: {key} must be {wanted}, not {fault['input']!r}"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}, not {fault['input']!r}"
