"""Turn records into conversations, texts and pairs of preferences, or say why a record is unusable."""

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from artefacts.errors import spelled
from pipeline.examples.formats import FORMATS, Format

Messages = list[dict[str, str]]

_FIELDS = "make these fields text in every record of {key}.path, or remove those records"
#: Prefix of a reason -> what to do about such records. ``{key}`` is the recipe key of the examples.
HINTS = {
    "without ": "add these fields to every record of {key}.path, or map them with {key}.fields",
    "of another format": "put each format of {key}.path in files of its own",
    "roles out of order": "begin with a system or user message, and alternate user and assistant",
    "no assistant message": "add the assistant's answers, or remove these records",
    "a message's ": _FIELDS,
    **{f"{field} is ": _FIELDS for form in FORMATS for field in form.fields.values()},
}
#: The role of a message's author -> its role in a chat template.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
}
#: Names, for messages, of JSON values that are not text.
_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


class Example(NamedTuple):
    """An example before it is rendered.

    Attributes:
        source: where it comes from.
        messages: the conversation. It ends with an assistant message. Empty for a plain text.
        question: the last user message.
        answer: the last assistant message, or the plain text.
        rejected: for a preference, the conversation with the rejected answer. ``messages`` has the chosen answer.
        prompt: for a preference, the number of messages that both conversations begin with.
    """

    source: str
    messages: Messages
    question: str
    answer: str
    rejected: Messages | None = None
    prompt: int = 0

    @property
    def is_text(self) -> bool:
        """Whether the example is a plain text."""
        return not self.messages

    @property
    def conversation(self) -> Messages:
        """The example as one conversation, by which similar examples are recognized."""
        if self.is_text:
            return [{"role": "user", "content": self.answer}, {"role": "assistant", "content": self.answer}]
        return [*self.messages, *(self.rejected or [])[self.prompt :]]

    @property
    def shown(self) -> str:
        """The example as text, for people."""
        if self.is_text:
            return self.answer
        parts = [f"{message['role']}: {message['content']}" for message in self.messages]
        if self.rejected is not None:
            parts += [f"rejected: {message['content']}" for message in self.rejected[self.prompt :]]
        return "\n".join(parts)


class UnusableError(Exception):
    """Raised for an unusable record. The message is the reason."""


def example(value: Any, source: str, form: Format, normalized: Callable[[str], str]) -> Example:
    """Convert a record. ``normalized`` is applied to every text.

    Raises:
        UnusableError: the record is unusable.
    """
    if not isinstance(value, dict):
        raise UnusableError("not a JSON object")
    if missing := form.missing(value):
        other = next((other for other in FORMATS if other.name != form.name and other.matches(value)), None)
        listed = ", ".join(map(str, value)) or "none"
        if other:
            raise UnusableError(f"of another format than the file's {form.title}: {other.title} (its fields: {listed})")
        raise UnusableError(f"without {' and '.join(missing)} (its fields: {listed})")
    reader = _Reader(value, form, normalized)
    if form.name == "text":
        return Example(source, [], "", reader.text("text"))
    if form.name == "preference":
        return _preference(reader, source)
    if "messages" in form.fields:
        messages = reader.messages("messages")
    else:
        messages = [*reader.prompt(), *reader.answer("answer")]
    return _conversation(_in_order([*reader.system(), *messages]), source)


def _conversation(messages: Messages, source: str) -> Example:
    questions = [message["content"] for message in messages if message["role"] == "user"]
    return Example(source, messages, questions[-1] if questions else "", messages[-1]["content"])


def _preference(reader: "_Reader", source: str) -> Example:
    chosen, rejected = reader.answer("chosen"), reader.answer("rejected")
    prompt = reader.prompt() if reader.has("prompt") else []
    if chosen[0]["role"] != "assistant" and rejected[0]["role"] != "assistant":
        # Both are complete conversations, which begin with the prompt.
        prompt = []
    system = reader.system()
    both = [_in_order([*system, *prompt, *answer]) for answer in (chosen, rejected)]
    if both[0] == both[1]:
        raise UnusableError("chosen equal to rejected")
    pairs = zip(*both, strict=False)
    shared = next((number for number, (one, other) in enumerate(pairs) if one != other), min(map(len, both)))
    shared = min(shared, *(len(messages) - 1 for messages in both))
    if not shared:
        raise UnusableError("chosen and rejected without a common prompt")
    if any(messages[shared]["role"] != "assistant" for messages in both):
        raise UnusableError("chosen and rejected differ before the assistant's answer")
    questions = [message["content"] for message in both[0][:shared] if message["role"] == "user"]
    answer = both[0][-1]["content"]
    return Example(source, both[0], questions[-1] if questions else "", answer, both[1], shared)


def _in_order(messages: Messages) -> Messages:
    """Return a conversation without trailing messages that no answer follows, and without an empty system message.

    Raises:
        UnusableError: its roles are out of order, or a message is empty.
    """
    if messages and messages[0]["role"] == "system" and not messages[0]["content"]:
        messages = messages[1:]
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise UnusableError("no assistant message to learn from")
    while roles[-1] != "assistant":
        roles.pop()
    messages = messages[: len(roles)]
    after_system = roles[1:] if roles[0] == "system" else roles
    if "system" in after_system:
        raise UnusableError("roles out of order: a system message after the beginning")
    if after_system[0] == "assistant":
        raise UnusableError("roles out of order: the assistant begins")
    for role, following in pairwise(after_system):
        if role == following:
            raise UnusableError(f"roles out of order: two {role} messages in a row")
    for message in messages:
        if not message["content"]:
            raise UnusableError("an empty answer" if message["role"] == "assistant" else "an empty user message")
    return messages


class _Reader:
    """Reads the fields of one record."""

    def __init__(self, record: Mapping[str, Any], form: Format, normalized: Callable[[str], str]) -> None:
        self._record, self._form, self._normalized = record, form, normalized

    def has(self, role: str) -> bool:
        """Return whether the record has a value for a role. In a table, the fields that are not used are null."""
        return self._value(role) is not None

    def text(self, role: str) -> str:
        """Return the text of a required field.

        Raises:
            UnusableError: it is not text, or is empty.
        """
        name = self._form.fields[role]
        text = self._text(self._value(role), name)
        if not text:
            raise UnusableError(f"{name} is empty")
        return text

    def system(self) -> Messages:
        """Return the system message, if there is one in a field of its own."""
        if not self.has("system"):
            return []
        text = self._text(self._value("system"), self._form.fields["system"])
        return [{"role": "system", "content": text}] if text else []

    def prompt(self) -> Messages:
        """Return the prompt: messages, or a user message that includes the record's input, if any."""
        if self._has_messages("prompt"):
            return self.messages("prompt")
        text = self.text("prompt")
        extra = self._text(self._value("input"), self._form.fields["input"]) if self.has("input") else ""
        return [{"role": "user", "content": f"{text}\n\n{extra}" if extra else text}]

    def answer(self, role: str) -> Messages:
        """Return the answer in a field: messages, or one assistant message."""
        if self._has_messages(role):
            return self.messages(role)
        return [{"role": "assistant", "content": self.text(role)}]

    def _has_messages(self, role: str) -> bool:
        """Return whether a field holds messages instead of text, in a format where it may."""
        return "role" in self._form.fields and isinstance(self._value(role), list)

    def messages(self, role: str) -> Messages:
        """Return the messages in a field.

        Raises:
            UnusableError: they are not a list of messages.
        """
        field, values = self._form.fields[role], self._value(role)
        if isinstance(values, str):
            # In CSV, a list can only be text.
            try:
                values = json.loads(values)
            except (ValueError, RecursionError):
                values = None
        if not isinstance(values, list) or not all(isinstance(message, dict) for message in values):
            raise UnusableError(f"{field} is not a list of objects")
        if not values:
            raise UnusableError(f"{field} is empty")
        return [self._message(message) for message in values]

    def _message(self, message: Mapping[str, Any]) -> dict[str, str]:
        author_field, content_field = self._form.fields["role"], self._form.fields["content"]
        for name in (author_field, content_field):
            if message.get(name) is None:
                raise UnusableError(f"a message's {name} is {'null' if name in message else 'missing'}")
        author = message[author_field]
        if not isinstance(author, str) or author not in _ROLES:
            raise UnusableError("a role other than system, user, assistant")
        content = message[content_field]
        if isinstance(content, list):
            content = "\n".join(self._part(part, content_field) for part in content)
        return {"role": _ROLES[author], "content": self._text(content, f"a message's {content_field}")}

    def _part(self, part: Any, field: str) -> str:
        """Return one part of a message whose content is a list."""
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            what = f"a part of type {spelled(str(kind))[:40]}" if kind else "a part without a type"
            raise UnusableError(f"a message's {field} has {what}, not only text")
        return str(part["text"])

    def _value(self, role: str) -> Any:
        return self._record.get(self._form.fields[role]) if role in self._form.fields else None

    def _text(self, value: Any, name: str) -> str:
        """Return the value as normalized text.

        Raises:
            UnusableError: the value is not text, or contains lone surrogates, which UTF-8 cannot encode.
        """
        if value is None:
            raise UnusableError(f"{name} is null")
        if not isinstance(value, str):
            raise UnusableError(f"{name} is {_KINDS.get(type(value), 'a ' + type(value).__name__)}, not text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UnusableError("a lone surrogate, which is not a character") from None
        return self._normalized(value)
