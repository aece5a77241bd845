"""Chat templates turn messages into token ids and labels.

A template is a Jinja program, as in transformers. Only the template's own text can produce control tokens. The content
of a message is always encoded as plain text, even if it contains a control token's name.

ChatML's tokens ``<|im_start|>`` and ``<|im_end|>`` stand for the tokenizer's tokens at the beginning of a conversation
and at the end of a turn, unless the tokenizer has tokens with these names.
"""

from pathlib import Path

from artefacts.errors import RequestError
from tokenizer.base import Tokenizer
from tokenizer.chat_layout import Layouts, Segment, UnrenderableError, as_rendered
from tokenizer.jinja_sandbox import Messages, varying
from tokenizer.special_tokens import IGNORED

ROLES = ("system", "user", "assistant")

#: Name of a built-in template -> its Jinja program.
BUILT_IN = {
    "millrace": (
        "{{ '<|begin|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "instruction": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{{ '### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' }}"
        "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endif %}{% endfor %}"
    ),
}


class ChatTemplate:
    """A chat template for one tokenizer.

    Attributes:
        source: the Jinja program.
        stop_ids: ids that end a completion. They include the token that ends the assistant's turns.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, name: str = "the chat template") -> None:
        """Compile a template. ``name`` is its name in messages.

        Raises:
            RequestError: the template has a syntax error, cannot render a conversation, does not show which text the
                assistant generates, or ends the assistant's turns without a control token.
        """
        self.source, self._tokenizer = source, tokenizer
        self._layouts = Layouts(source, name, _control_tokens(tokenizer), tokenizer.special_names)
        self._keeps_contents = source in BUILT_IN.values()
        self.stop_ids: frozenset[int] = tokenizer.stop_ids | self._layouts.stop_ids

    def render(self, messages: Messages, loss_on: str = "assistant") -> tuple[list[int], list[int]]:
        """Return the ids and labels of a conversation.

        Args:
            messages: the conversation.
            loss_on: ``assistant``, or ``all`` to learn the other messages and the template's own text too.

        Returns:
            Two lists of the same length. ``labels[i]`` is ``ids[i]`` if it is learned, and ``IGNORED`` otherwise. With
            ``assistant``, the assistant's contents and the tokens that end its turns are learned. The labels are not
            shifted by one; the loss does that.

        Raises:
            RequestError: there is no message, a role is unknown, or content is not text.
            UnrenderableError: the template refuses the conversation, or changes the content of a message.
        """
        ids, learned = self._encode(messages, False)
        if loss_on == "all":
            return ids, list(ids)
        return ids, [token if is_learned else IGNORED for token, is_learned in zip(ids, learned, strict=True)]

    def prompt(self, messages: Messages) -> list[int]:
        """Return the ids of a conversation that the assistant will continue.

        Raises:
            RequestError: for the reasons in ``render``, or if the template cannot render the conversation.
        """
        try:
            return self.answer_prefix(messages)
        except UnrenderableError as error:
            raise RequestError(f"{self._layouts.name}: {error}") from None

    def answer_prefix(self, messages: Messages) -> list[int]:
        """Return the ids that precede the answer to a conversation, like ``prompt``, for one of many conversations.

        Raises:
            RequestError: for the reasons in ``render``.
            UnrenderableError: the template cannot render the conversation.
        """
        return self._encode(messages, True)[0]

    def text(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """Return a conversation as text, as transformers renders it. Do not encode it: contents can imitate tokens.

        Raises:
            UnrenderableError: the template refuses the conversation.
        """
        return self._layouts.text(messages, add_generation_prompt)

    def exported(self) -> str:
        """Return the Jinja program for transformers, where ChatML's tokens need the names of the tokenizer's tokens."""
        source = self.source
        for alias, token in _chatml_tokens(self._tokenizer).items():
            if alias not in self._tokenizer.control_ids:
                source = source.replace(alias, self._tokenizer.piece(token))
        return source

    def marked_text(self, messages: Messages, mark: str, prompt: bool = True) -> str:
        """Return a conversation as text, for libraries that work with strings.

        Args:
            messages: the conversation.
            mark: put before the id of every control token, which ends with a semicolon. No message may contain it.
            prompt: whether the assistant will answer. If not, the last message is left open instead.

        Raises:
            RequestError: for the reasons in ``prompt``.
        """
        try:
            layout, contents = self._laid_out(messages, prompt)
        except UnrenderableError as error:
            raise RequestError(f"{self._layouts.name}: {error}") from None
        parts = []
        for segment in layout:
            if segment.token is not None:
                parts.append(f"{mark}{segment.token};")
            else:
                parts.append(segment.text if segment.message is None else contents[segment.message])
            if not prompt and segment.message == len(contents) - 1:
                break
        return "".join(parts)

    def _laid_out(self, messages: Messages, prompt: bool) -> tuple[list[Segment], list[str]]:
        """Return the layout of a conversation, and the contents of its messages."""
        contents = [content for _, content in _checked(messages)]
        layout = self._layouts.of(tuple(message["role"] for message in messages), prompt)
        if not self._keeps_contents:
            contents = as_rendered(layout, contents, self.text(messages, prompt))
        return layout, contents

    def _encode(self, messages: Messages, prompt: bool) -> tuple[list[int], list[bool]]:
        """Return a conversation's ids, and whether the assistant generates them."""
        layout, contents = self._laid_out(messages, prompt)
        ids: list[int] = []
        learned: list[bool] = []
        text = ""
        for segment, following in zip(layout, [*layout[1:], None], strict=True):
            encoded = [] if segment.token is None else [segment.token]
            if segment.token is None:
                text += segment.text if segment.message is None else contents[segment.message]
                # Consecutive text is encoded in one piece, as transformers does, except where learning begins or ends:
                # a prompt must be encoded in the same way as in training.
                if following and following.token is None and following.learned == segment.learned:
                    continue
                encoded, text = self._tokenizer.encode(text), ""
            ids += encoded
            learned += [segment.learned] * len(encoded)
        return ids, learned


def _control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the names that produce control tokens in a template's own text, with their ids."""
    return _chatml_tokens(tokenizer) | dict(tokenizer.control_ids)


def _chatml_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the tokens that take the place of ChatML's tokens if the tokenizer does not have them."""
    end = tokenizer.end_of_turn_id if tokenizer.has_chat_tokens else tokenizer.end_of_text_id
    return {"<|im_start|>": tokenizer.first_id, "<|im_end|>": end}


def load(template: str, tokenizer: Tokenizer, key: str = "finetune.examples.template") -> ChatTemplate:
    """Load a built-in template by its name, or a template from a file. ``key`` is the recipe key, for messages.

    Raises:
        RequestError: there is no such template, it cannot be used with this tokenizer, or its renderings vary.
    """
    if template == "millrace" and not tokenizer.has_chat_tokens:
        raise RequestError(
            f"{key}=millrace needs chat tokens, which this tokenizer does not have: set {key}=chatml or "
            f"{key}=instruction, or use tokenizer.kind=bpe or characters"
        )
    source, name = source_of(template, key), f"{key}: {template}"
    # Examples depend only on the recipe and their text. Recorded templates are not loaded here, so they stay usable.
    if names := varying(source):
        raise RequestError(
            f"{name} uses {' and '.join(names)}, so the examples would depend on when they are built: write fixed text "
            "in its place, such as '26 Jul 2024' for a date"
        )
    return ChatTemplate(source, tokenizer, name)


def source_of(template: str, key: str = "finetune.examples.template") -> str:
    """Return the Jinja program of a built-in template, or the content of a file.

    Raises:
        RequestError: there is no such template or file.
    """
    if template in BUILT_IN:
        return BUILT_IN[template]
    path = Path(template)
    if not path.is_file():
        raise RequestError(f"{key}: {template} is neither {', '.join(BUILT_IN)} nor a file with a Jinja template")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{key}: {template}: cannot be read: {error}") from None


def default(tokenizer: Tokenizer) -> ChatTemplate:
    """Return the template for weights that were not fine-tuned."""
    return load("millrace" if tokenizer.has_chat_tokens else "chatml", tokenizer)


def _checked(messages: Messages) -> list[tuple[str, str]]:
    """Return each message's role and content.

    Raises:
        RequestError: there is no message, a role is unknown, or content is not text.
    """
    if not messages:
        raise RequestError("a conversation needs at least one message")
    pairs = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise RequestError(f"message {number}: role {role!r} is not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise RequestError(f"message {number}: content is not text")
        pairs.append((role, content))
    return pairs
