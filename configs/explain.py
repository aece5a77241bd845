"""Explanations of recipe keys, as plain text for a terminal: ``make explain KEY=train.micro_batch``."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from artefacts.checkout import CHECKOUT
from artefacts.errors import RequestError
from configs.load import renamed, suggested, with_name
from configs.parsing import recipe_yaml
from configs.parsing.key_lookup import kind_of, look_up
from configs.reference import EFFECTS, SAME_KEYS, Key, Page, keys, pages, spelled
from configs.schema import Recipe
from configs.schema.base import inner_sections
from configs.schema.finetune import FinetuneSection
from configs.schema.models import DEFAULT_FAMILY, FAMILIES

_WIDTH = 110
_BACKBONE = FAMILIES["classifier"].model_fields["backbone"]


def explain(name: str) -> str:
    """Explain a key or a section. An empty name lists the sections.

    Raises:
        RequestError: there is no such key. The message gives the key's new name, if any, or else the nearest key.
    """
    if not name:
        return "\n".join([*_sections(), "", "KEY=SECTION lists the keys of a section. KEY=SECTION.KEY explains a key."])
    generic, chosen, *_ = look_up(name)
    described = _described_as(generic)
    if same := [key for key in keys() if key.name == described]:
        return "\n\n".join("\n".join(_about_key(name, variants)) for variants in _variants(same))
    if sections := [page for page in pages() if page.name == described]:
        return "\n\n".join("\n".join(_about_section(page)) for page in sections)
    nearest = with_name(suggested(generic, Recipe.keys()), generic, chosen)
    raise RequestError(renamed(name) or f"unknown key {name}; {nearest}")


def _described_as(key: str) -> str:
    """Return the key that the reference describes in place of this one, or the key itself."""
    for prefix, other in SAME_KEYS.items():
        if key.startswith(prefix):
            return f"{other}{key.removeprefix(prefix)}"
    return key


def _sections() -> Iterator[str]:
    """Yield a line per section. All model families share one line."""
    first = {page.name: page for page in reversed(pages())}
    names = [name for name in dict.fromkeys(page.name for page in pages()) if name.count(".") < 2]
    width = max(map(len, names))
    for name in names:
        intro = "The model, of one of several families." if name == "model" else _first_sentence(first[name].intro)
        yield f"{name:<{width}}  {intro}"


def _variants(same: Iterable[Key]) -> list[list[Key]]:
    """Group keys with the same name by type, default and meaning, because model families share most of their keys."""
    groups: dict[tuple[str, ...], list[Key]] = {}
    for key in same:
        groups.setdefault((key.type, key.default, key.meaning), []).append(key)
    return list(groups.values())


def _about_key(name: str, variants: list[Key]) -> Iterator[str]:
    key = variants[0]
    yield name
    yield textwrap.indent(textwrap.fill(_plain(key.meaning), _WIDTH), "  ")
    yield ""
    rows = [("type", key.type)]
    # The meaning of an optional key says what happens if it is not set.
    if key.field.default is not None:
        rows.append(("default", key.default or "(empty)"))
    families = [variant.family for variant in variants if variant.family]
    if name.startswith("model.backbone."):
        families = [family for family in families if FAMILIES[family] in inner_sections(_BACKBONE)]
    if families:
        rows.append(("families", ", ".join(families)))
    if key.kinds:
        rows.append(("read by", f"data.source.kind: {', '.join(key.kinds)}"))
    rows.append(("changes", EFFECTS[key.effect][1]))
    recipes = _recipes_with(name, families)
    rows += [("" if number else "set in", line) for number, line in enumerate(recipes)]
    for title, text in rows:
        yield f"  {title:<10}{_plain(text)}"


def _about_section(page: Page) -> Iterator[str]:
    yield _plain(page.title)
    yield textwrap.indent(_plain(page.intro), "  ")
    leaves = [key.name.rpartition(".")[2] for key in page.keys]
    width = max(map(len, leaves))
    heading = None
    for key, leaf in zip(page.keys, leaves, strict=True):
        if key.heading != heading:
            heading = key.heading
            yield f"\n{_plain(heading)}" if heading else ""
        default = key.default if key.default.startswith("[") else f"[{key.default or 'empty'}]"
        room = _WIDTH + 20 - width - 5 - len(default)
        meaning = textwrap.shorten(_first_sentence(key.meaning), room, placeholder=" …")
        yield f"  {leaf:<{width}}  {meaning} {default}"
    inner = [other.name for other in pages() if other.family == page.family and _is_below(other.name, page.name)]
    if inner:
        yield f"\nsections: {', '.join(dict.fromkeys(inner))}"


def _is_below(name: str, section: str) -> bool:
    return name.rpartition(".")[0] == section


def _recipes_with(name: str, families: Sequence[str]) -> list[str]:
    """List the checkout's recipes that set a key, each with its value. ``families``, if any, restricts the list."""
    lines = []
    for path in sorted((CHECKOUT / "configs").rglob("*.yaml")):
        recipe: Any = recipe_yaml.parse(path.read_text(encoding="utf-8"), kind_of)
        section = _value(recipe, name.rpartition(".")[0])
        for stage, value in _values(recipe, name):
            if value is not None and (not families or section.get("family", DEFAULT_FAMILY) in families):
                shown = repr(value) if isinstance(value, str) and value != value.strip() else spelled(value)
                lines.append(f"{path.relative_to(CHECKOUT)}{stage}: {shown}")
    return lines


def _values(recipe: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield ("", value) for a dotted key in a recipe's tree. If it has several stages, yield (" (STAGE)", value)."""
    generic, chosen, *_ = look_up(name)
    if not generic.startswith("finetune."):
        yield "", _value(recipe, name)
        return
    stages = recipe.get("finetune") or {}
    stages = stages if isinstance(stages, list) else [stages]
    for stage in stages:
        title = stage.get("name") or stage.get("method") or FinetuneSection.model_fields["method"].default
        if chosen in ("", title):
            yield f" ({title})" if len(stages) > 1 else "", _value({"finetune": stage}, generic)


def _value(tree: Any, name: str) -> Any:
    """Return the value of a dotted key in a recipe's tree, or None if it is not set."""
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _first_sentence(text: str) -> str:
    return re.split(r"(?<!al)(?<=\.)\s", _plain(text), maxsplit=1)[0]


def _plain(text: str) -> str:
    """Remove the markup from Markdown text."""
    return re.sub(r"\[[^\]]*\]\(([^)#]*)[^)]*\)", r"docs/\1", text).replace("`", "")
