"""A trained tokenizer: text to ids and back without loss."""

import re
from collections.abc import Sequence
from pathlib import Path

from artefacts import repair
from configs.errors import RequestError
from tokenizer import special

MODEL_NAME = "tokenizer.model"
#: SentencePiece writes a space as U+2581 and would decode a literal one to a space: it goes as its three bytes instead.
_SPACE_MARK = "\u2581"
_SURROGATES = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A SentencePiece model with Millrace's reserved tokens.

    Any text that UTF-8 can hold comes back from ``decode(encode(text))`` unchanged; a lone surrogate, which it cannot
    hold, becomes U+FFFD.
    """

    def __init__(self, model: bytes) -> None:
        """Take the bytes of a SentencePiece model.

        Raises:
            RequestError: it is no SentencePiece model, or lacks Millrace's reserved tokens.
        """
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except (RuntimeError, OSError):
            raise RequestError("not a SentencePiece model") from None
        first = tuple(self._pieces.IdToPiece(i) for i in range(min(len(special.RESERVED), self.vocab_size)))
        if first != special.RESERVED:
            raise RequestError(f"not one of Millrace's tokenizers: ids 0 to 7 are {', '.join(first)}")
        self._first_text_id = next(i for i in range(self.vocab_size) if not self.is_reserved(i))
        self._space_mark = [self._pieces.PieceToId(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of an artefact folder.

        Raises:
            RequestError: there is none, or it is damaged.
        """
        path = Path(folder) / MODEL_NAME
        try:
            return cls(path.read_bytes())
        except FileNotFoundError:
            raise RequestError(f"{path} is not there: run `python -m tokenizer train` first") from None
        except RequestError as error:
            raise RequestError(f"{path}: {error}; {repair.cure('tokenizer', path.parent)}") from None

    @property
    def vocab_size(self) -> int:
        """Number of ids, reserved ones included."""
        return int(self._pieces.GetPieceSize())

    unknown_id = special.UNKNOWN_ID
    begin_id = special.BEGIN_ID
    end_of_text_id = special.END_OF_TEXT_ID
    pad_id = special.PAD_ID
    system_id = special.SYSTEM_ID
    user_id = special.USER_ID
    assistant_id = special.ASSISTANT_ID
    end_of_turn_id = special.END_OF_TURN_ID

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Never a reserved id, whatever the text spells."""
        text = _writable(text)
        if _SPACE_MARK not in text:
            return self._pieces.EncodeAsIds(text)
        first, *rest = (self._pieces.EncodeAsIds(part) if part else [] for part in text.split(_SPACE_MARK))
        ids: list[int] = first
        for part in rest:
            ids += self._space_mark
            ids += part
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text, in one thread: callers run processes of their own."""
        plain = [i for i, text in enumerate(texts) if _SPACE_MARK not in text]
        encoded = self._pieces.Encode([_writable(texts[i]) for i in plain], out_type=int, num_threads=1)
        found = dict(zip(plain, encoded, strict=True))
        return [found[i] if i in found else self.encode(text) for i, text in enumerate(texts)]

    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        """Text of ids; reserved tokens are dropped, or shown by name.

        Raises:
            RequestError: an id beyond the vocabulary.
        """
        parts: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            if not 0 <= token < self.vocab_size:
                raise RequestError(f"id {token} is outside the vocabulary of {self.vocab_size}")
            if token >= self._first_text_id:
                run.append(token)
            elif show_special:
                parts += [self._pieces.DecodeIds(run) if run else "", self.piece(token)]
                run = []
        return "".join([*parts, self._pieces.DecodeIds(run) if run else ""])

    def piece(self, token: int) -> str:
        """How the vocabulary spells an id: U+2581 for a space, <0x..> for a byte."""
        return str(self._pieces.IdToPiece(token))

    def is_reserved(self, token: int) -> bool:
        """Whether an id is a control token (or the unknown one), which no text encodes to."""
        return token < len(special.RESERVED) or bool(self._pieces.IsControl(token))

    def is_byte(self, token: int) -> bool:
        """Whether an id is a single byte of byte fallback."""
        return bool(self._pieces.IsByte(token))


def _writable(text: str) -> str:
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
