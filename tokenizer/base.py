"""The interface that all tokenizers implement: text to ids, and back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from artefacts.errors import RequestError
from tokenizer import special_tokens
from tokenizer.arrow_text import Encoded

#: Main file of the tokenizer artefact: a SentencePiece model, Hugging Face's format, or Millrace's list of characters.
MODEL_NAME = "tokenizer.model"
JSON_NAME = "tokenizer.json"
CHARACTERS_NAME = "characters.json"

_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer(ABC):
    """A tokenizer. ``tokenizer.registry.load_tokenizer`` loads one.

    Attributes:
        has_chat_tokens: whether the tokenizer has reserved tokens for conversations. If not, the properties that return
            their ids raise RequestError.
        unknown_id: the id for characters that have no id of their own, or None if there is no such id.
        end_of_text_id: the id at the end of every document.
    """

    has_chat_tokens: bool = True
    unknown_id: int | None = special_tokens.UNKNOWN_ID
    end_of_text_id: int = special_tokens.END_OF_TEXT_ID

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, including the reserved ones."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Encode text to ids. The result has no reserved ids, except ``unknown_id`` for characters without an id."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode several texts in a single thread, because callers run several processes."""

    @abstractmethod
    def encode_column(self, texts: Any, end: bool = True) -> Encoded:
        """Encode a column of texts without nulls, in one thread.

        Args:
            texts: a ``pyarrow.LargeStringArray`` or ``StringArray``, or a ``ChunkedArray`` of either.
            end: whether to append ``end_of_text_id`` to the ids of each text.

        Returns:
            The ids of all texts, concatenated (int32), and each text's number of ids, including the end (int32).
        """

    def prepare(self) -> None:
        """Prepare for ``encode_column``. Call this before starting processes, so that the work is done only once."""
        return

    @abstractmethod
    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        """Decode ids to text. Reserved tokens are dropped or, with ``show_special``, shown by name.

        Raises:
            RequestError: an id is outside the vocabulary.
        """

    @abstractmethod
    def piece(self, token: int) -> str:
        """Return the vocabulary's entry for an id."""

    def label(self, token: int) -> str:
        """Return ``piece`` with spaces and control characters made visible, for tables and figures."""
        visible = self.piece(token).replace(" ", "␣").replace("▁", "␣")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in visible) or "''"

    @abstractmethod
    def is_reserved(self, token: int) -> bool:
        """Return whether an id is the unknown token or a control token. Encoding never produces control tokens."""

    @abstractmethod
    def is_byte(self, token: int) -> bool:
        """Return whether an id stands for a single byte. Characters without a piece are encoded as bytes."""

    @cached_property
    def control_ids(self) -> Mapping[str, int]:
        """Map from the name of each control token to its id. Encoding never produces these ids."""
        tokens = (token for token in range(self.vocab_size) if self.is_reserved(token) and token != self.unknown_id)
        return {self.piece(token): token for token in tokens}

    @property
    def special_names(self) -> dict[str, str]:
        """Names of special tokens under the names by which chat templates refer to them, such as ``eos_token``."""
        ids = {"bos_token": self.first_id, "eos_token": self.end_of_text_id, "pad_token": self.pad_id}
        return {name: self.piece(token) for name, token in ids.items()}

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a completion."""
        return frozenset({self.end_of_text_id, *([self.end_of_turn_id] if self.has_chat_tokens else [])})

    @property
    def begin_id(self) -> int:
        """Id of ``<|begin|>``, which starts a conversation."""
        return self._chat_token(special_tokens.BEGIN_ID)

    @property
    def first_id(self) -> int:
        """Id of a decoder's first input: ``<|begin|>``, or ``end_of_text_id`` if the tokenizer has no chat tokens."""
        return self.begin_id if self.has_chat_tokens else self.end_of_text_id

    @property
    def prefix_id(self) -> int:
        """Id before a text that has no context: the released tokenizer's beginning token, or else ``first_id``."""
        return self.first_id

    def encode_as_released(self, text: str) -> list[int]:
        """Encode text as the released tokenizer does by default. It may add a token before or after each text."""
        return self.encode(text)

    @property
    def pad_id(self) -> int:
        """Id of ``<|pad|>``, which pads the shorter conversations in a batch.

        Without chat tokens, it is ``end_of_text_id``: padding is never a target, so any token will do.
        """
        return special_tokens.PAD_ID if self.has_chat_tokens else self.end_of_text_id

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
            raise RequestError("this tokenizer has no chat tokens: use tokenizer.kind=bpe or characters")

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise RequestError(f"id {token} is outside the vocabulary of {self.vocab_size}")
        return token


def writable(text: str) -> str:
    """Replace every lone surrogate with U+FFFD, because UTF-8 cannot encode surrogates."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
