"""A lossless SentencePiece BPE with reserved tokens."""

from collections.abc import Sequence
from typing import Any

from artefacts.errors import RequestError
from tokenizer import arrow_text, special_tokens
from tokenizer.arrow_text import Encoded
from tokenizer.base import Tokenizer, writable
from tokenizer.word_cache import WordCache

#: SentencePiece represents a space as U+2581, and would decode a literal U+2581 as a space. So a literal U+2581 is
#: encoded as bytes.
SPACE_MARK = "\u2581"


class BpeTokenizer(Tokenizer):
    """A SentencePiece model with Millrace's reserved tokens.

    ``decode(encode(text))`` returns any text unchanged. The only exceptions are lone surrogates, which UTF-8 cannot
    encode. They become U+FFFD.
    """

    def __init__(self, model: bytes) -> None:
        """Load a SentencePiece model from its bytes.

        Raises:
            RequestError: this is not a SentencePiece model, or it does not have Millrace's reserved tokens.
        """
        import sentencepiece

        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except (RuntimeError, OSError):
            raise RequestError("not a SentencePiece model") from None
        first = tuple(self._pieces.IdToPiece(i) for i in range(min(len(special_tokens.RESERVED), self.vocab_size)))
        if first != special_tokens.RESERVED:
            raise RequestError(f"not a Millrace tokenizer: ids 0 to 7 are {', '.join(first)}")
        self._first_text_id = next(i for i in range(self.vocab_size) if not self.is_reserved(i))
        self._space_mark = [self._pieces.PieceToId(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        self._words: WordCache | None = None
        self._words_loaded = False

    @property
    def vocab_size(self) -> int:
        return int(self._pieces.GetPieceSize())

    def encode(self, text: str) -> list[int]:
        text = writable(text)
        if SPACE_MARK not in text:
            return self._pieces.EncodeAsIds(text)
        first, *rest = (self._pieces.EncodeAsIds(part) if part else [] for part in text.split(SPACE_MARK))
        ids: list[int] = first
        for part in rest:
            ids += self._space_mark
            ids += part
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        plain = [i for i, text in enumerate(texts) if SPACE_MARK not in text]
        encoded = self._pieces.Encode([writable(texts[i]) for i in plain], out_type=int, num_threads=1)
        ids_by_index = dict(zip(plain, encoded, strict=True))
        return [ids_by_index[i] if i in ids_by_index else self.encode(text) for i, text in enumerate(texts)]

    def prepare(self) -> None:
        """Compile the C code for ``encode_column``. If that fails, print a line to stderr, but only once."""
        if not self._words_loaded:
            self._words, self._words_loaded = WordCache.of(self._pieces, self._space_mark), True

    def encode_column(self, texts: Any, end: bool = True) -> Encoded:
        """See ``Tokenizer.encode_column``. The ids of words are cached across calls.

        Without a C compiler, there is no cache. SentencePiece then encodes every text, and the result is the same.
        """
        self.prepare()
        closing = self.end_of_text_id if end else None
        if self._words is None:
            return arrow_text.encode_lists(texts, self.encode_batch, closing)
        words = self._words
        return arrow_text.joined([words.encode(chunk, closing) for chunk in arrow_text.chunks(texts)])

    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        parts: list[str] = []
        run: list[int] = []
        for token in map(self._checked, map(int, ids)):
            if token >= self._first_text_id:
                run.append(token)
            elif show_special:
                parts += [self._pieces.DecodeIds(run) if run else "", self.piece(token)]
                run = []
        return "".join([*parts, self._pieces.DecodeIds(run) if run else ""])

    def piece(self, token: int) -> str:
        """Return the vocabulary's entry for an id. A space is shown as U+2581, and a byte as <0x..>."""
        return str(self._pieces.IdToPiece(token))

    def is_reserved(self, token: int) -> bool:
        return token < len(special_tokens.RESERVED) or bool(self._pieces.IsControl(token))

    def is_byte(self, token: int) -> bool:
        return bool(self._pieces.IsByte(token))

    def merges(self) -> list[tuple[str, str]]:
        """Return the merges as pairs of pieces, highest priority first. The priority is the merged piece's score."""
        scores = {
            self.piece(token): float(self._pieces.GetScore(token))
            for token in range(self._first_text_id, self.vocab_size)
            if not self.is_byte(token) and not self.is_reserved(token)
        }
        numbers = {piece: number for number, piece in enumerate(scores)}
        pairs: list[tuple[str, str]] = []
        for piece in sorted(scores, key=lambda piece: -scores[piece]):
            halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
            known = [(left, right) for left, right in halves if left in scores and right in scores]
            pairs += sorted(known, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))
        return pairs
