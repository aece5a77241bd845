"""Read a recipe: YAML, then ``section.key=value`` overrides, then the typed classes; every fault is one clear line."""

import copy
import difflib
import math
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from artefacts.errors import RequestError, utf8_fault
from configs import recipe_yaml
from configs.recipe_yaml import RecipeYamlError
from configs.schema import Recipe
from configs.schema.base import Section, has_names, inner_sections
from configs.schema.models import FAMILIES, UNKNOWN_FAMILY
from configs.schema.renamed import RENAMED

#: How alike two keys are of which one may be a slip of the other.
_NEAR = 0.7
#: Keys of a section that a message lists.
_LISTED = 8
#: What a pattern asks for, in words.
_RULES = {"run.name": "letters, digits, '.', '_' and '-'"}


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a YAML file with ``section.key=value`` overrides applied.

    Raises:
        RequestError: no such file, not YAML, an unknown key, a wrong type or an impossible combination.
    """
    path = Path(path)
    try:
        tree = recipe_yaml.parse(path.read_text(encoding="utf-8"), _kind_of)
    except FileNotFoundError:
        raise RequestError(f"{path}: no such recipe{_meant(path)}") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder: give a recipe in it, such as {_some_recipe(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {error}") from None
    except RecipeYamlError as error:
        raise RequestError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RequestError(f"{path}: a recipe is a mapping of sections (run, data, tokenizer, model, train, ...)")
    whole = _overridden(tree, overrides or [])
    if unwritable := _utf8_fault(whole):
        raise RequestError(f"{path}: {unwritable}")
    try:
        return Recipe.model_validate(whole)
    except ValidationError as error:
        # A slip in a required key's name is told, not that the key is missing.
        fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    override = _at_fault(tree, overrides or [], fault)
    raise RequestError(_explain(fault, f"override {override}" if override else str(path)))


def _meant(path: Path) -> str:
    """The recipe that a path without its folder or ending stands for, or where recipes are."""
    name = path.name if path.suffix == ".yaml" else f"{path.name}.yaml"
    here = [path.with_name(name)] if path.with_name(name).is_file() else []
    near = next(iter([*here, *sorted(Path("configs").rglob(name))]), None)
    return (
        f": did you mean {near}?" if near else "; `ls configs configs/teaching` lists the recipes that Millrace ships"
    )


def _some_recipe(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.yaml"))), folder / "NAME.yaml")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def as_override(key: str, value: Any) -> str:
    """The override that gives a key this value, as it can be copied into a shell's command line."""
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    # Behind a lone value YAML ends the document.
    text = " ".join(text.removesuffix("...\n").split())
    override = f"{key}={text}"
    return f"'{override}'" if " " in override else override


def _overridden(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A recipe's tree with overrides; the one given stays as it is."""
    tree = copy.deepcopy(tree)
    for override in overrides:
        _override(tree, override)
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RequestError(
            f"{override!r} is not an override: write section.key=value, in quotes where the value has spaces"
        )
    try:
        # Only of a key that may be left out does null mean that.
        as_it_stands = _takes_text(key) and (text != "null" or _kind_of(key) is str)
        value = text if as_it_stands else recipe_yaml.parse(text, _kind_of, key)
    except RecipeYamlError as error:
        raise RequestError(f"override {override}: {error.message}") from None
    except yaml.YAMLError:
        value = text
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[leaf] = value


def _utf8_fault(value: Any, key: str = "") -> str | None:
    """What is wrong with the first text of a tree that UTF-8 cannot hold; None: nothing."""
    if isinstance(value, str):
        fault = utf8_fault(value)
        return f"{key}: {fault}" if fault else None
    held: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        held = [(f"{key}.{name}" if key else str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list):
        held = [(key, inner) for inner in value]
    return next(filter(None, (_utf8_fault(inner, name) for name, inner in held)), None)


def _at_fault(tree: dict[str, Any], overrides: list[str], fault: ErrorDetails) -> str | None:
    """The override without which the recipe would not have this fault, of several the one that the message names."""
    causes = []
    for place, override in enumerate(overrides):
        others = overrides[:place] + overrides[place + 1 :]
        if _same(fault) not in map(_same, _faults(_overridden(tree, others))):
            causes.append(override)
    return min(reversed(causes), key=lambda override: _mentioned(override.partition("=")[0], fault), default=None)


def _faults(tree: dict[str, Any]) -> list[ErrorDetails]:
    try:
        Recipe.model_validate(tree)
    except ValidationError as error:
        return error.errors()
    return []


def _same(fault: ErrorDetails) -> tuple[Any, ...]:
    """What a fault is told from others by; of a section only what is said of it."""
    return fault["type"], fault["loc"], fault["msg"], None if isinstance(fault["input"], dict) else repr(fault["input"])


def _mentioned(name: str, fault: ErrorDetails) -> float:
    """Where what is said of a fault first mentions a key, in full or without the section that is at fault."""
    section = _place(fault)
    said = f"{section} {fault['msg']}"
    keys = "|".join(re.escape(key) for key in (name, name.removeprefix(f"{section}.")))
    found = re.search(rf"(?<![\w.])({keys})(?!\w)", said)
    return found.start() if found else math.inf


class _Key(NamedTuple):
    """A key of the recipe as the schema has it.

    Attributes:
        generic: the key with NAME where the user gives a name.
        name: the name given there.
        kind: annotation of its value; None: there is no such key.
        examples: values that it takes, where the schema has some.
    """

    generic: str
    name: str
    kind: Any
    examples: list[Any]


def _key(key: str) -> _Key:
    sections: list[type[Section]] = [Recipe]
    parts: list[str] = []
    kind: Any = None
    examples: list[Any] = []
    name, named = "", False
    for part in key.split("."):
        if named:
            parts.append("NAME")
            name, kind, named = part, sections[0], False
            continue
        parts.append(part)
        # A model section may be of any family: one that has the key tells of it.
        fields = (section.named_fields().get(part, ("", None))[1] for section in sections)
        field = next(filter(None, fields), None)
        sections, kind = (inner_sections(field), field.annotation) if field else ([], None)
        examples = (field and field.examples) or []
        named = field is not None and bool(sections) and has_names(field)
    return _Key(".".join(parts), name, kind, examples)


def _kind_of(key: str) -> Any:
    return _key(key).kind


def _takes_text(key: str) -> bool:
    """Whether a key holds text, which an override gives as it stands: in a prompt ``yes`` and ``# note`` are words."""
    kind = _kind_of(key)
    return kind is str or (str in get_args(kind) and type(None) in get_args(kind))


def _keys_of(section: str) -> list[str]:
    """The keys of a section, without its own name."""
    prefix = f"{_key(section).generic}."
    every: list[str] = Recipe.keys()
    return [key.removeprefix(prefix) for key in every if key.startswith(prefix)]


def _place(fault: ErrorDetails) -> str:
    """The dotted key of a fault; pydantic puts the family behind ``model``."""
    parts = [str(part) for part in fault["loc"]]
    return ".".join(part for at, part in enumerate(parts) if not _is_family(parts, at))


def _is_family(parts: list[str], at: int) -> bool:
    return at > 0 and parts[at - 1] in ("model", "backbone") and parts[at] in FAMILIES


def _nearest(fault: ErrorDetails) -> str:
    """What to say of an unknown key; of a model section's, keys of its own family are meant."""
    generic, name, *_ = _key(_place(fault))
    parts = [str(part) for part in fault["loc"]]
    keys: list[str] = Recipe.keys()
    for at, part in enumerate(parts):
        if _is_family(parts, at):
            before = [each for place, each in enumerate(parts[:at]) if not _is_family(parts, place)]
            keys = FAMILIES[part].keys(".".join(before) + ".")
    return f"; {_suggested(generic, keys)}".replace(".NAME.", f".{name}." if name else ".NAME.")


def _suggested(key: str, keys: list[str]) -> str:
    """The key of its section that is nearest, else one of the same name elsewhere, else what the section has."""
    section, dot, leaf = key.rpartition(".")
    own = [each.rpartition(".")[2] for each in keys if each.rpartition(".")[0] == section]
    if near := difflib.get_close_matches(leaf, own, n=1, cutoff=_NEAR):
        return f"the nearest key is {section}{dot}{near[0]}"
    every: list[str] = Recipe.keys()
    if elsewhere := [each for each in every if each.rpartition(".")[2] == leaf]:
        return f"there is {' and '.join(elsewhere[:3])}"
    if not own:
        return f"the nearest key is {difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]}"
    shown = difflib.get_close_matches(leaf, own, n=_LISTED, cutoff=0.0)
    what = f"keys of {section}" if section else "sections"
    return f"{what} are {', '.join(shown)}{', …' if len(own) > _LISTED else ''}"


def _explain(fault: ErrorDetails, where: str) -> str:
    """One line for a fault: where it stands, what is wrong, and the nearest valid key."""
    key = _place(fault)
    if fault["type"] == "extra_forbidden":
        if key in RENAMED:
            return f"{where}: unknown key {key}: it is called {RENAMED[key]}"
        return f"{where}: unknown key {key}{_nearest(fault)}"
    if fault["type"] == UNKNOWN_FAMILY:
        return f"{where}: {key}.family: {fault['input'].get('family')!r} is {fault['msg']}"
    if fault["type"] == "missing":
        return f"{where}: {key} is missing"
    if fault["type"] in ("model_type", "model_attributes_type"):
        first = next(iter(_keys_of(key)), "KEY")
        return f"{where}: {key} is a section, not {fault['input']!r}: set keys of it, such as {key}.{first}"
    if fault["type"] == "tuple_type":
        return f"{where}: {key}: a list is wanted, such as [{fault['input']}]"
    if fault["type"] == "string_pattern_mismatch":
        rule = f"{_RULES[key]}, " if key in _RULES else ""
        return f"{where}: {key}: not {fault['input']!r}, but {rule}such as {' or '.join(_key(key).examples)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        if not key:
            return f"{where}: {message}"
        # Of a section, what is said begins as a rule with a key in it.
        begins = isinstance(fault["input"], dict) and re.split(r"[^\w-]", message)[0] in _keys_of(key)
        return f"{where}: {key}{'.' if begins else ': '}{message}"
    return f"{where}: {key}: {message[0].lower()}{message[1:]}, not {fault['input']!r}"
