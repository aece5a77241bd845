"""The chat template, which turns messages into ids and labels.

A conversation is ``<|begin|>``, followed by each message's role token, content and ``<|end|>``.
"""

from collections.abc import Mapping, Sequence

from artefacts.errors import RequestError
from tokenizer import special_tokens
from tokenizer.base import Tokenizer
from tokenizer.special_tokens import IGNORED

_ROLES = {"system": special_tokens.SYSTEM_ID, "user": special_tokens.USER_ID, "assistant": special_tokens.ASSISTANT_ID}


def render(messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids and labels of a conversation.

    Returns:
        Two lists of the same length. ``labels[i]`` is ``ids[i]`` for the content of assistant messages and their
        ``<|end|>``, and ``IGNORED`` everywhere else. The labels are not shifted by one; the loss does that.

    Raises:
        RequestError: there is no message, a role is unknown, content is not text, or the tokenizer has no chat tokens.
    """
    tokenizer.require_chat_tokens()
    ids, labels = [special_tokens.BEGIN_ID], [IGNORED]
    for role, content in _checked(messages):
        message_ids = [*tokenizer.encode(content), special_tokens.END_OF_TURN_ID]
        ids += [_ROLES[role], *message_ids]
        labels += [IGNORED, *(message_ids if role == "assistant" else [IGNORED] * len(message_ids))]
    return ids, labels


def prompt(messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> list[int]:
    """Return the ids of a conversation that the assistant will continue. They end with ``<|assistant|>``.

    Raises:
        RequestError: for the same reasons as in ``render``.
    """
    return [*render(messages, tokenizer)[0], special_tokens.ASSISTANT_ID]


def text(messages: Sequence[Mapping[str, str]], control: str = "", continued: bool = True) -> str:
    """Return a conversation as text, for libraries that work with strings.

    Args:
        messages: the messages.
        control: put before the name of every control token, to tell it from the same name in a message.
        continued: whether to end with ``<|assistant|>``, which the assistant continues. If False, the last message is
            left open instead.

    Raises:
        RequestError: for the same reasons as in ``render``.
    """

    def name(token: int) -> str:
        return control + special_tokens.RESERVED[token]

    parts = [name(special_tokens.BEGIN_ID)]
    for role, content in _checked(messages):
        parts += [name(_ROLES[role]), content, name(special_tokens.END_OF_TURN_ID)]
    return "".join([*parts, name(special_tokens.ASSISTANT_ID)] if continued else parts[:-1])


def _checked(messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    if not messages:
        raise RequestError("a conversation needs at least one message")
    checked = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise RequestError(f"message {number}: role {role!r} is not one of {', '.join(_ROLES)}")
        if not isinstance(content, str):
            raise RequestError(f"message {number}: content is not text")
        checked.append((role, content))
    return checked
