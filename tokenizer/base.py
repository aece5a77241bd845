"""A tokenizer of a run: text to ids and back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from artefacts.errors import RequestError
from tokenizer import special_tokens
from tokenizer.arrow_text import Encoded

#: What an artefact folder holds: Millrace's SentencePiece model, Hugging Face's format, or Millrace's characters.
MODEL_NAME = "tokenizer.model"
JSON_NAME = "tokenizer.json"
CHARACTERS_NAME = "characters.json"

_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer(ABC):
    """What every tokenizer does; ``tokenizer.registry.load_tokenizer`` returns the right kind.

    Attributes:
        end_of_text_id: stands behind every document.
        has_chat_tokens: whether there are reserved tokens for the turns of a conversation; without them the ids of
            those raise RequestError.
    """

    has_chat_tokens: bool = True
    unknown_id: int | None = special_tokens.UNKNOWN_ID
    end_of_text_id: int = special_tokens.END_OF_TEXT_ID

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, reserved ones included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text. Never a reserved id, whatever the text spells, but ``unknown_id`` for what has no id."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text, in one thread: callers run processes of their own."""

    @abstractmethod
    def encode_column(self, texts: Any, end: bool = True) -> Encoded:
        """``encode`` of each text of a column without nulls, in one thread.

        Args:
            texts: ``pyarrow.LargeStringArray``, ``StringArray`` or a ``ChunkedArray`` of them.
            end: put ``end_of_text_id`` behind the ids of each text.

        Returns:
            int32 ids of all texts one after the other, and the int32 number of ids of each, the end's counted.
        """

    def prepare(self) -> None:
        """Make ready what ``encode_column`` needs. Called before processes start, it spares each the work."""
        return

    @abstractmethod
    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        """Text of ids; reserved tokens are dropped, or shown by name.

        Raises:
            RequestError: an id beyond the vocabulary.
        """

    @abstractmethod
    def piece(self, token: int) -> str:
        """How the vocabulary spells an id."""

    def label(self, token: int) -> str:
        """``piece`` as it can stand in a table or a figure: blanks and what is not printed are made visible."""
        spelt = self.piece(token).replace(" ", "␣").replace("▁", "␣")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in spelt) or "''"

    @abstractmethod
    def is_reserved(self, token: int) -> bool:
        """Whether an id is a control token, which no text encodes to, or the unknown one."""

    @abstractmethod
    def is_byte(self, token: int) -> bool:
        """Whether an id is a single byte, for characters without a piece of their own."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which a completion ends."""
        return frozenset({self.end_of_text_id, *([self.end_of_turn_id] if self.has_chat_tokens else [])})

    @property
    def begin_id(self) -> int:
        """``<|begin|>``, the first id of a conversation."""
        return self._chat_token(special_tokens.BEGIN_ID)

    @property
    def first_id(self) -> int:
        """What a decoder reads before a target: ``<|begin|>``, or ``end_of_text_id`` of a tokenizer that has none."""
        return self.begin_id if self.has_chat_tokens else self.end_of_text_id

    @property
    def pad_id(self) -> int:
        """``<|pad|>``, which fills the shorter conversations of a batch."""
        return self._chat_token(special_tokens.PAD_ID)

    @property
    def system_id(self) -> int:
        """``<|system|>``, before what the system says."""
        return self._chat_token(special_tokens.SYSTEM_ID)

    @property
    def user_id(self) -> int:
        """``<|user|>``, before what the user says."""
        return self._chat_token(special_tokens.USER_ID)

    @property
    def assistant_id(self) -> int:
        """``<|assistant|>``, before what the assistant says."""
        return self._chat_token(special_tokens.ASSISTANT_ID)

    @property
    def end_of_turn_id(self) -> int:
        """``<|end|>``, behind each turn."""
        return self._chat_token(special_tokens.END_OF_TURN_ID)

    def _chat_token(self, token: int) -> int:
        self.require_chat_tokens()
        return token

    def require_chat_tokens(self) -> None:
        """Nothing, where conversations can be rendered.

        Raises:
            RequestError: the tokenizer has no tokens for turns.
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
    """The text as UTF-8 can hold it: each lone surrogate becomes U+FFFD."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
