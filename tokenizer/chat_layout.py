"""The layout of a rendered conversation: which text comes from the template, which from messages, and what is learned.

A template is rendered with placeholders instead of the messages' contents. Only its own text is searched for control
tokens, so a content can never produce one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeVar

from artefacts.errors import RequestError
from tokenizer.jinja_sandbox import Messages, Program, TemplateFailedError

T = TypeVar("T")

#: Brackets of a placeholder, which are private characters of Unicode, and the pattern of a placeholder.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_PLACEHOLDER = f"{_OPEN}([0-9]+){_CLOSE}"
#: The roles of a conversation that every template must be able to render.
_PROBE = ("user", "assistant", "user", "assistant")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class UnrenderableError(Exception):
    """Raised for a conversation that a template cannot render. The message is the reason."""


class Segment(NamedTuple):
    """A piece of a rendered conversation: literal text, a control token, or the content of a message.

    Attributes:
        learned: whether the assistant generates it.
        text: literal text of the template, or the name of the control token. Empty for a content.
        token: id of the control token.
        message: index of the message whose content is inserted here.
    """

    learned: bool
    text: str = ""
    token: int | None = None
    message: int | None = None


class Layouts:
    """The layouts of a template's conversations.

    Attributes:
        name: the template's name in messages.
        stop_ids: ids of the control tokens that end the assistant's turns.
    """

    def __init__(self, source: str, name: str, tokens: Mapping[str, int], variables: Mapping[str, str]) -> None:
        """Compile a template, and check that its assistant turns can be learned.

        Args:
            source: the Jinja program.
            name: the template's name in messages.
            tokens: name of each control token -> its id.
            variables: names of special tokens that the template may insert, such as ``eos_token``.

        Raises:
            RequestError: the template has a syntax error, cannot render a conversation, does not show which text the
                assistant generates, or ends the assistant's turns without a control token.
        """
        self.name = name
        self._program, self._tokens, self._variables = Program(source, name), tokens, variables
        self._has_blocks = bool(_GENERATION.search(source))
        names = sorted(tokens, key=len, reverse=True)
        self._parts = re.compile("|".join([_PLACEHOLDER, *map(re.escape, names)]))
        # Conversations with the same roles have the same layout.
        self.of = lru_cache(maxsize=1024)(self._lay_out)
        try:
            probe = self.of(_PROBE, False)
        except UnrenderableError as error:
            raise RequestError(f"{name}: cannot render a conversation: {error}") from None
        stops = self._stops(probe)
        if len(stops) != 2:
            raise RequestError(
                f"{name}: its generation blocks do not contain the assistant's messages: enclose each of them, and the "
                "token that ends it, in {% generation %} and {% endgeneration %}"
            )
        self.stop_ids = frozenset(token for stop in stops if (token := probe[stop].token) is not None)

    def text(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Render a conversation.

        Raises:
            UnrenderableError: the template refuses it.
        """
        return self._rendered(self._program.text, messages, add_generation_prompt)

    def _rendered(self, render: Callable[..., T], messages: Messages, add_generation_prompt: bool) -> T:
        try:
            return render(messages, add_generation_prompt, self._variables)
        except TemplateFailedError as error:
            raise UnrenderableError(f"refused by the template: {error}") from None

    def _lay_out(self, roles: tuple[str, ...], prompt: bool) -> list[Segment]:
        """Return the segments of a conversation with these roles. A ``prompt`` is continued by the assistant.

        Raises:
            UnrenderableError: the template refuses the conversation or leaves out a message.
            RequestError: the reasons of ``__init__``.
        """
        shown = [{"role": role, "content": f"{_OPEN}{number}{_CLOSE}"} for number, role in enumerate(roles)]
        rendered = self._rendered(self._program.tracked, shown, prompt)
        missing = set(range(len(roles))) - {int(number) for number in re.findall(_PLACEHOLDER, rendered.text)}
        if missing:
            raise UnrenderableError(f"the template leaves out the {roles[min(missing)]}'s message")
        spans = [] if prompt else rendered.generated
        if not (prompt or self._has_blocks):
            spans = self._assistant_spans(shown, rendered.text)
        layout = self._segments(rendered.text, spans)
        stops = self._stops(layout)
        if self._has_blocks:
            return layout
        # Text after the token that ends a turn, such as a line break, is the template's.
        unlearned = {place for stop in stops for place in _rest_of_span(layout, stop)}
        return [
            segment._replace(learned=segment.learned and place not in unlearned) for place, segment in enumerate(layout)
        ]

    def _assistant_spans(self, shown: Messages, text: str) -> list[tuple[int, int]]:
        """Find the text that the assistant generates: what a message adds to a prompt for it.

        Raises:
            RequestError: the rendering of the first messages does not begin the rendering of all messages.
        """
        spans = []
        for number, message in enumerate(shown):
            if message["role"] == "assistant":
                before = self.text(shown[:number], True)
                after = self.text(shown[: number + 1], False)
                if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
                    raise RequestError(
                        f"{self.name}: cannot tell which text the assistant generates, because the template renders "
                        "the beginning of a conversation, or the prompt for an answer, differently once more messages "
                        "follow: enclose that text in {% generation %} and {% endgeneration %}"
                    )
                spans.append((len(before), len(after)))
        return spans

    def _segments(self, text: str, spans: Sequence[tuple[int, int]]) -> list[Segment]:
        """Divide a text with placeholders into segments. Literal text is cut where a span begins or ends."""
        cuts = sorted({cut for span in spans for cut in span})
        segments: list[Segment] = []

        def is_learned(place: int) -> bool:
            return any(start <= place < stop for start, stop in spans)

        def add_text(start: int, stop: int) -> None:
            bounds = [start, *(cut for cut in cuts if start < cut < stop), stop]
            for first, last in pairwise(bounds):
                if first < last:
                    segments.append(Segment(is_learned(first), text[first:last]))

        at = 0
        for match in self._parts.finditer(text):
            add_text(at, match.start())
            message = None if match[1] is None else int(match[1])
            token = None if message is not None else self._tokens[match[0]]
            name = match[0] if message is None else ""
            segments.append(Segment(is_learned(match.start()), name, token, message))
            at = match.end()
        add_text(at, len(text))
        return segments

    def _stops(self, layout: Sequence[Segment]) -> list[int]:
        """Return the place of the control token that ends each of the assistant's turns.

        Raises:
            RequestError: there is no such token.
        """
        stops = []
        for place, segment in enumerate(layout):
            if segment.message is None or not segment.learned:
                continue
            rest = _rest_of_span(layout, place)
            stop = next((after for after in rest if layout[after].token is not None), None)
            if stop is None:
                ending = "".join(layout[after].text for after in rest)
                raise RequestError(
                    f"{self.name}: the assistant's turns end with {ending!r}, which is no control token of this "
                    "tokenizer, so a model would not learn to stop: end them with {{ eos_token }}, inside the "
                    "generation block if there is one"
                )
            stops.append(stop)
        return stops


def _rest_of_span(layout: Sequence[Segment], place: int) -> list[int]:
    """Return the places after ``place`` in its span: up to the next message, or to text that is not learned."""
    rest = []
    for after in range(place + 1, len(layout)):
        if not layout[after].learned or layout[after].message is not None:
            break
        rest.append(after)
    return rest


def as_rendered(layout: Sequence[Segment], contents: Sequence[str], text: str) -> list[str]:
    """Return the contents as a template renders them: unchanged, or without white space at their ends.

    Args:
        layout: the conversation's layout.
        contents: the messages' contents.
        text: the conversation as the template renders it.

    Raises:
        UnrenderableError: the template changes a content in another way.
    """
    rendered = list(contents)
    at = 0
    for segment, following in zip(layout, [*layout[1:], None], strict=True):
        options: tuple[str, ...] = (segment.text,)
        if segment.message is not None:
            content = contents[segment.message]
            options = (content, content.rstrip(), content.lstrip(), content.strip())
        after = following.text if following else ""
        match = next((o for o in options if text.startswith(o, at) and text.startswith(after, at + len(o))), None)
        if match is None:
            break
        if segment.message is not None:
            rendered[segment.message] = match
        at += len(match)
    if at != len(text):
        raise UnrenderableError("the template changes the text of a message")
    return rendered
