"""A YAML parser for recipes, in which a key's type determines how its value is parsed.

YAML 1.1 reads ``020`` as 16, ``1:30`` as 90 and ``yes`` as true. This parser keeps text as written. It rejects
numbers, such as ``020``, that YAML would parse differently from how a person reads them.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

_TAG = "tag:yaml.org,2002:"
#: Numbers that YAML 1.1 parses differently from how a person reads them: leading zeros, a base prefix, base 60.
_OCTAL = re.compile(r"[-+]?0(_?[0-9])+")
_OTHER_BASE = re.compile(r"[-+]?0([xX](_?[0-9a-fA-F])+|[bB](_?[01])+|[oO](_?[0-7])+)")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


class RecipeYamlError(yaml.YAMLError):
    """Raised for valid YAML that recipes do not allow. The message gives the line number and what to write instead."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.message = message


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads 3e-4 as a number (in YAML 1.1, it is a string) and rejects duplicate keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise RecipeYamlError(line, f"{key.value} is already in line {lines[key.value]}: merge the two")
            lines[key.value] = line
        return node


_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
# The integer resolver must come first. Otherwise 256 would be read as the float 256.0.
for _resolvers in _Loader.yaml_implicit_resolvers.values():
    _resolvers.sort(key=lambda entry: entry[0] == f"{_TAG}float")


def parse(text: str, kind_of: Callable[[str], Any], key: str = "") -> Any:
    """Parse text as the value of a recipe key, or as a complete recipe if ``key`` is empty.

    ``kind_of`` returns the annotation of a dotted key, or None if there is no such key.

    Raises:
        RecipeYamlError: the text is valid YAML, but not allowed in recipes.
        yaml.YAMLError: the text is not YAML.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _tag_scalars(root, key, kind_of, set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _tag_scalars(node: yaml.Node, key: str, kind_of: Callable[[str], Any], seen: set[int]) -> None:
    """Tag the scalars below a node with the types of their keys."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.tag == f"{_TAG}merge":
                _tag_scalars(value, key, kind_of, seen)
            elif isinstance(name, yaml.ScalarNode):
                # Keys are always text, because a source may be named ``on``.
                name.tag = f"{_TAG}str"
                _tag_scalars(value, f"{key}.{name.value}" if key else name.value, kind_of, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _tag_scalars(item, key, kind_of, seen)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and node.tag != f"{_TAG}null":
        _tag_scalar(node, key, _types(kind_of(key)))


def _tag_scalar(node: yaml.ScalarNode, key: str, types: set[Any]) -> None:
    """Tag an unquoted scalar as text if its key takes text but no numbers or booleans. Reject ambiguous numbers.

    Raises:
        RecipeYamlError: YAML parses a number differently from how a person reads it, or a value must be a number but is
            not.
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
    what = "not a number" if plain is None else f"not a plain decimal number: write {plain}"
    quotes = "" if types & {int, float} else ", or put it in quotes if it is text"
    raise RecipeYamlError(node.start_mark.line + 1, f"{key}: {text} is {what}{quotes}")


def _types(kind: Any) -> set[Any]:
    """Return the value types that an annotation allows, including those inside lists and mappings. None allows none."""
    if kind is None or kind is Ellipsis:
        return set()
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {type(value) for value in parts}
    if origin is Annotated:
        return _types(parts[0])
    return set().union(*map(_types, parts)) if parts else {kind}
