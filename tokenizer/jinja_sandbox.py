"""Renders chat templates written in Jinja, with the settings and functions that transformers gives to templates.

A template comes from someone else, so it runs in Jinja's sandbox: it cannot read attributes of Python's internals or
change its arguments.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from artefacts.errors import RequestError

Messages = Sequence[Mapping[str, str]]

#: Functions and filters whose result is not always the same.
_VARYING_FUNCTIONS, _VARYING_FILTERS = {"strftime_now", "lipsum"}, {"random"}

#: Noncharacters of Unicode, which mark where a generation block begins and ends, and the variables that hold them.
_BEGIN, _END = "\ufdd0", "\ufdd1"
_MARKS = {"__generation_begins": _BEGIN, "__generation_ends": _END}


class TemplateFailedError(Exception):
    """Raised if a template cannot render a conversation. The message is the template's own, in one line."""


class Text(NamedTuple):
    """A rendered conversation.

    Attributes:
        text: the text.
        generated: (start, stop) positions of the generation blocks, in characters.
    """

    text: str
    generated: list[tuple[int, int]]


class Program:
    """A compiled template."""

    def __init__(self, source: str, name: str) -> None:
        """Compile a template. ``name`` is its name in messages.

        Raises:
            RequestError: the template has a syntax error.
        """
        try:
            self._compiled = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise RequestError(f"{name}: line {error.lineno}: {error.message}") from None

    def text(self, messages: Messages, add_generation_prompt: bool, variables: Mapping[str, str]) -> str:
        """Render a conversation. ``variables`` are the names of special tokens, such as ``eos_token``.

        Raises:
            TemplateFailedError: the template raised an exception.
        """
        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        # A template can fail like any program: with Jinja's errors, or with Python's, such as a TypeError.
        except Exception as error:
            raise TemplateFailedError(" ".join(str(error).split()) or type(error).__name__) from None

    def tracked(self, messages: Messages, add_generation_prompt: bool, variables: Mapping[str, str]) -> Text:
        """Render a conversation like ``text``, with the positions of generation blocks.

        The messages must not contain the noncharacters U+FDD0 and U+FDD1.
        """
        return _without_marks(self.text(messages, add_generation_prompt, {**variables, **_MARKS}))


def varying(source: str) -> list[str]:
    """Return a template's functions and filters, such as ``strftime_now``, whose result is not always the same.

    A template with a syntax error has none.
    """
    try:
        tree = _environment().parse(source)
    except jinja2.TemplateSyntaxError:
        return []
    functions = {node.name for node in tree.find_all(nodes.Name)}
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    return sorted(functions & _VARYING_FUNCTIONS | filters & _VARYING_FILTERS)


def _without_marks(marked: str) -> Text:
    """Remove the marks of generation blocks, and return the text and the blocks' positions."""
    pieces: list[str] = []
    generated: list[tuple[int, int]] = []
    length = start = 0
    for number, block in enumerate(marked.split(_BEGIN)):
        inside, mark, after = block.partition(_END)
        if number:
            start = length
        if mark:
            generated.append((start, start + len(inside)))
        pieces += [inside, after]
        length += len(inside) + len(after)
    return Text("".join(pieces), generated)


class _GenerationBlock(Extension):
    """The statement ``{% generation %} … {% endgeneration %}``, which encloses what the assistant generates."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # Without these variables, the marks are empty: an undefined variable renders as nothing.
        marks = [nodes.Output([nodes.Name(name, "load")], lineno=line) for name in _MARKS]
        # Variables that are set in the block are not visible after it.
        return [marks[0], nodes.Scope(body, lineno=line), marks[1]]


class _Namespace(Namespace):
    """Jinja's ``namespace``, without names that begin with an underscore."""

    def __init__(*positional: Any, **attributes: Any) -> None:
        # A template may pass any name, including "self".
        self, *values = positional
        for name in dict(*values, **attributes):
            _check_public(name)
        Namespace.__init__(self, *values, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace: the name {name!r} begins with an underscore")


class _Dictionaries:
    """``dict`` for templates: it makes dictionaries and gives access to nothing else."""

    def __call__(self, *pairs: Any, **items: Any) -> dict[Any, Any]:
        return dict(*pairs, **items)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dictionaries(),
        "namespace": _Namespace,
    }
    return environment
