"""The interface of all tokenizers: text to ids and back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from artefacts.errors import RequestError
from tokenizer import special_tokens
from tokenizer.arrow_text import Encoded

#: The file of the tokenizer artefact: a SentencePiece model, Hugging Face's format, or Millrace's list of characters.
MODEL_NAME = "tokenizer.model"
JSON_NAME = "tokenizer.json"
CHARACTERS_NAME = "characters.json"

_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer(ABC):
    """A tokenizer; see ``tokenizer.registry.load_tokenizer``.

    Attributes:
        end_of_text_id: the id at the end of every document.
        has_chat_tokens: whether there are reserved tokens for conversations. Without them, the properties that return
            their ids raise RequestError.
    """

    has_chat_tokens: bool = True
    unknown_id: int | None = special_tokens.UNKNOWN_ID
    end_of_text_id: int = special_tokens.END_OF_TEXT_ID

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, including reserved ones."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text. A text never has reserved ids, except ``unknown_id`` for characters without an id."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text, in one thread, because callers use several processes."""

    @abstractmethod
    def encode_column(self, texts: Any, end: bool = True) -> Encoded:
        """``encode`` of each text of a column without nulls, in one thread.

        Args:
            texts: ``pyarrow.LargeStringArray``, ``StringArray`` or a ``ChunkedArray`` of them.
            end: append ``end_of_text_id`` to the ids of each text.

        Returns:
            int32 ids of all texts, concatenated, and the int32 number of ids of each text, including the end.
        """

    def prepare(self) -> None:
        """Prepare ``encode_column``. Call it before starting processes, so that they do not have to."""
        return

    @abstractmethod
    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        """Text of ids. Reserved tokens are dropped, or shown by name.

        Raises:
            RequestError: an id is outside the vocabulary.
        """

    @abstractmethod
    def piece(self, token: int) -> str:
        """How the vocabulary spells an id."""

    def label(self, token: int) -> str:
        """``piece`` for tables and figures, with visible spaces and control characters."""
        visible = self.piece(token).replace(" ", "␣").replace("▁", "␣")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in visible) or "''"

    @abstractmethod
    def is_reserved(self, token: int) -> bool:
        """Whether an id is a control token, to which no text is encoded, or the unknown token."""

    @abstractmethod
    def is_byte(self, token: int) -> bool:
        """Whether an id is a single byte, for characters without a piece."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which a completion ends."""
        return frozenset({self.end_of_text_id, *([self.end_of_turn_id] if self.has_chat_tokens else [])})

    @property
    def begin_id(self) -> int:
        """Id of ``<|begin|>``, which begins a conversation."""
        return self._chat_token(special_tokens.BEGIN_ID)

    @property
    def first_id(self) -> int:
        """The first input of a decoder: ``<|begin|>``, or ``end_of_text_id`` if the tokenizer has no chat tokens."""
        return self.begin_id if self.has_chat_tokens else self.end_of_text_id

    @property
    def pad_id(self) -> int:
        """Id of ``<|pad|>``, which pads the shorter conversations of a batch."""
        return self._chat_token(special_tokens.PAD_ID)

    @property
    def system_id(self) -> int:
        """Id of ``<|system|>``, which begins a system message."""
        return self._chat_token(special_tokens.SYSTEM_ID)

    @property
    def user_id(self) -> int:
        """Id of ``<|user|>``, which begins a user message."""
        return self._chat_token(special_tokens.USER_ID)

    @property
    def assistant_id(self) -> int:
        """Id of ``<|assistant|>``, which begins an assistant message."""
        return self._chat_token(special_tokens.ASSISTANT_ID)

    @property
    def end_of_turn_id(self) -> int:
        """Id of ``<|end|>``, which ends each message."""
        return self._chat_token(special_tokens.END_OF_TURN_ID)

    def _chat_token(self, token: int) -> int:
        self.require_chat_tokens()
        return token

    def require_chat_tokens(self) -> None:
        """Check that conversations can be rendered.

        Raises:
            RequestError: the tokenizer has no chat tokens.
        """
        if not self.has_chat_tokens:
            raise RequestError(
                "this tokenizer has no chat tokens, which fine-tuning and generate.chat need: "
                "use tokenizer.kind=bpe or characters"
            )

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise RequestError(f"id {token} is outside the vocabulary of {self.vocab_size}")
        return token


def writable(text: str) -> str:
    """The text with every lone surrogate, which UTF-8 cannot encode, replaced by U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
