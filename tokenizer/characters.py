"""A character-level tokenizer. Its ids are the reserved tokens, then the documents' characters by code point."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artefacts import repair_hints
from artefacts.errors import RequestError
from configs.schema import Recipe
from tokenizer import arrow_text, special_tokens
from tokenizer.arrow_text import Encoded
from tokenizer.base import Tokenizer, writable

#: Number of Unicode code points.
_CODE_POINTS = 0x110000
#: Number of documents to convert to Python objects at a time.
_ROWS = 1024


class CharacterTokenizer(Tokenizer):
    """A tokenizer with one id per character.

    ``decode(encode(text))`` returns the text unchanged if all its characters are in the vocabulary. Any other character
    becomes ``<unk>``. Lone surrogates, which UTF-8 cannot encode, first become U+FFFD.
    """

    def __init__(self, content: bytes) -> None:
        """Load the content that ``fit`` returned.

        Raises:
            RequestError: the content is damaged.
        """
        try:
            values = json.loads(content)
            reserved, characters = [str(name) for name in values["reserved"]], str(values["characters"])
        except (ValueError, KeyError, TypeError):
            raise RequestError("not a character tokenizer") from None
        if tuple(reserved[: len(special_tokens.RESERVED)]) != special_tokens.RESERVED or list(characters) != sorted(
            set(characters)
        ):
            raise RequestError("not a character tokenizer that Millrace built")
        self._reserved = len(reserved)
        self._pieces = [*reserved, *characters]
        self._ids = np.full(_CODE_POINTS, special_tokens.UNKNOWN_ID, np.int32)
        self._ids[_code_points(characters)] = np.arange(len(reserved), len(self._pieces))

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        return self._ids[_code_points(writable(text))].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_column(self, texts: Any, end: bool = True) -> Encoded:
        import pyarrow.compute as compute

        parts: list[Encoded] = []
        for chunk in arrow_text.chunks(texts):
            lengths = compute.utf8_length(chunk).to_numpy().astype(np.int32)
            ids = self._ids[_code_points("".join(chunk.to_pylist()))]
            if end:
                ids = np.insert(ids, np.cumsum(lengths), self.end_of_text_id)
                lengths += 1
            parts.append((ids, lengths))
        return arrow_text.joined(parts)

    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        checked = [self._checked(int(token)) for token in ids]
        return "".join(self._pieces[token] for token in checked if show_special or not self.is_reserved(token))

    def piece(self, token: int) -> str:
        """Return the character with this id, even if it is a space or a line break, or the reserved token's name."""
        return self._pieces[token]

    def is_reserved(self, token: int) -> bool:
        return token < self._reserved

    def is_byte(self, token: int) -> bool:
        return False


def fit(folder: Path, recipe: Recipe) -> bytes:
    """Build a tokenizer for the documents artefact, and return its file's content.

    All documents are read, one batch at a time. So every character in the documents, and in the targets if they are
    encoded, gets an id. The result does not depend on the order of the documents.

    Raises:
        RequestError: a shard is damaged, or there are more characters than ``tokenizer.vocab_size`` has room for.
    """
    import pyarrow.parquet as parquet

    columns = ["text", "target"] if recipe.targets_are_text else ["text"]
    seen: set[str] = set()
    for path in sorted(folder.glob("clean-*.parquet")):
        with repair_hints.reading("documents", path):
            for batch in parquet.ParquetFile(path).iter_batches(_ROWS, columns=columns):
                for column in batch.columns:
                    seen.update(*column.drop_null().to_pylist())
    reserved = [*special_tokens.RESERVED, *special_tokens.spare(recipe.tokenizer.spare_tokens)]
    if (needed := len(reserved) + len(seen)) > recipe.tokenizer.vocab_size:
        raise RequestError(
            f"tokenizer.vocab_size ({recipe.tokenizer.vocab_size}) is too small for this text: its {len(seen):,} "
            f"distinct characters and {len(reserved)} reserved tokens need {needed}: raise it, or use "
            "tokenizer.kind=bpe, which encodes rare characters as bytes"
        )
    return json.dumps({"reserved": reserved, "characters": "".join(sorted(seen))}).encode()


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")
