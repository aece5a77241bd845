"""Recipes as YAML, of which the key decides how a value is read: none means two things.

YAML 1.1 takes ``020`` for 16, ``1:30`` for 90 and ``yes`` for true. A key that holds text gets the words as they stand;
for a number, what is not plainly one is refused.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

_TAG = "tag:yaml.org,2002:"
#: What YAML 1.1 reads as a number, and people as another one: a leading zero, another base, base 60.
_OCTAL = re.compile(r"[-+]?0(_?[0-9])+")
_OTHER_BASE = re.compile(r"[-+]?0([xX](_?[0-9a-fA-F])+|[bB](_?[01])+|[oO](_?[0-7])+)")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class RecipeYamlError(yaml.YAMLError):
    """Valid YAML that no recipe is written in, by the line in which it stands; the message says what to write."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.message = message


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 3e-4 as a string; recipes mean a number. Of a repeated key it would take the last in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise RecipeYamlError(
                    line, f"{key.value} stands in line {lines[key.value]} already: put the two together"
                )
            lines[key.value] = line
        return node


_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
# The integer resolver must be asked first, or 256 would be the float 256.0.
for _resolvers in _Loader.yaml_implicit_resolvers.values():
    _resolvers.sort(key=lambda entry: entry[0] == f"{_TAG}float")


def parse(text: str, kind_of: Callable[[str], Any], key: str = "") -> Any:
    """The value that a text spells, for a key of the recipe; without one for all of it.

    ``kind_of`` gives the annotation of a dotted key; None: there is none.

    Raises:
        yaml.YAMLError: it is not YAML, or (RecipeYamlError) not that of a recipe.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _settle(root, key, kind_of, set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _settle(node: yaml.Node, key: str, kind_of: Callable[[str], Any], seen: set[int]) -> None:
    """Read the scalars below a node as their keys want them."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.tag == f"{_TAG}merge":
                _settle(value, key, kind_of, seen)
            elif isinstance(name, yaml.ScalarNode):
                # A source may be called ``on``.
                name.tag = f"{_TAG}str"
                _settle(value, f"{key}.{name.value}" if key else name.value, kind_of, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _settle(item, key, kind_of, seen)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and node.tag != f"{_TAG}null":
        _settle_scalar(node, key, _types(kind_of(key)))


def _settle_scalar(node: yaml.ScalarNode, key: str, types: set[Any]) -> None:
    """Give a plain scalar the tag that its key wants.

    Raises:
        RecipeYamlError: it is a number to YAML that people would read as another, or for a number neither.
    """
    text = node.value
    if str in types and not types & {int, float, bool}:
        node.tag = f"{_TAG}str"
        return
    plain = None
    if _OCTAL.fullmatch(text):
        plain = str(int(text.replace("_", "")))
    elif _OTHER_BASE.fullmatch(text):
        plain = str(int(text, 0))
    elif str in types or not (
        _BASE_60.fullmatch(text) or (node.tag == f"{_TAG}bool" and types & {int, float} and bool not in types)
    ):
        return
    what = "not a number: write one" if plain is None else f"not a plain decimal number: write {plain}"
    quotes = "" if types & {int, float} else ", or put it in quotes where text is meant"
    raise RecipeYamlError(node.start_mark.line + 1, f"{key}: {text} is {what}{quotes}")


def _types(kind: Any) -> set[Any]:
    """The types that values of an annotation have, of lists and mappings those in them; none: the key is unknown."""
    if kind is None or kind is Ellipsis:
        return set()
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {type(value) for value in parts}
    if origin is Annotated:
        return _types(parts[0])
    return set().union(*map(_types, parts)) if parts else {kind}
