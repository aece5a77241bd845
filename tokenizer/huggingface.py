"""A pretrained tokenizer in Hugging Face's format (``tokenizers``), such as GPT-2's."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from artefacts.errors import RequestError
from tokenizer import arrow_text
from tokenizer.arrow_text import Encoded
from tokenizer.base import Tokenizer, writable

#: File next to ``tokenizer.json`` in most repositories. Its ``eos_token`` may name the token that ends a document.
CONFIG_NAME = "tokenizer_config.json"

#: Common names for the token that ends a document. The first one in the vocabulary is used.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]")


class HuggingFaceTokenizer(Tokenizer):
    """A ``tokenizers.Tokenizer``. If a special token's name occurs in a text, it is encoded as ordinary text.

    The tokenizer has no chat tokens. Whether it is lossless depends on its model. GPT-2's byte-level BPE is lossless.
    """

    has_chat_tokens = False
    unknown_id: int | None = None

    def __init__(self, content: str, config: str | None = None) -> None:
        """Create a tokenizer from the content of ``tokenizer.json`` and, if it exists, ``tokenizer_config.json``.

        Raises:
            RequestError: the content cannot be parsed, or there is no end-of-document token.
        """
        import tokenizers

        # Callers run several processes, and the library would start a thread per core in each of them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            self._pieces = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises nothing more specific
            raise RequestError(f"not a tokenizer in Hugging Face's format ({' '.join(str(error).split())})") from None
        self._pieces.no_truncation()
        self._pieces.no_padding()
        self._pieces.encode_special_tokens = True
        self._vocab_size = max(self._pieces.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = self._pieces.get_added_tokens_decoder()
        self._reserved = frozenset(token for token, facts in added.items() if facts.special)
        model = json.loads(content)["model"]
        unknown = {model.get("unk_id"), self._pieces.token_to_id(model.get("unk_token") or "")}
        # The model itself may know special tokens as ordinary pieces, as in Unigram and WordLevel models.
        pieces = self._pieces.get_vocab(with_added_tokens=False).values()
        self._spellable = self._reserved.intersection(pieces) - unknown
        self._named = _special_names(config)
        self.end_of_text_id = self._end_of_text(self._named.get("eos_token"))
        self._bytes = self._byte_ids()

    @classmethod
    def of_artefact(cls, path: Path) -> "HuggingFaceTokenizer":
        """Load a ``tokenizer.json`` file, and the ``tokenizer_config.json`` next to it if there is one.

        Raises:
            RequestError: a file is damaged.
        """
        config = path.with_name(CONFIG_NAME)
        try:
            return cls(
                path.read_text(encoding="utf-8"), config.read_text(encoding="utf-8") if config.exists() else None
            )
        except UnicodeDecodeError:
            raise RequestError("not UTF-8") from None

    def _end_of_text(self, eos_token: str | None) -> int:
        for name in (_ENDS[0], *([eos_token] if eos_token else []), *_ENDS[1:]):
            token = self._pieces.token_to_id(name)
            if token is not None:
                return int(token)
        raise RequestError(
            f"no token to end a document: it has none of {', '.join(_ENDS)}, nor the eos_token of {CONFIG_NAME}"
        )

    @cached_property
    def control_ids(self) -> Mapping[str, int]:
        """Map from the name of each special token to its id. Encoding never produces these ids."""
        return {self.piece(token): token for token in sorted(self._reserved)}

    @property
    def special_names(self) -> dict[str, str]:
        """Names of special tokens: those in ``tokenizer_config.json``, and otherwise the token that ends a document."""
        known = {key: name for key, name in self._named.items() if self._pieces.token_to_id(name) is not None}
        return {**super().special_names, **known}

    def _byte_ids(self) -> frozenset[int]:
        """Return the ids of single bytes if the vocabulary is byte-level or has byte fallback, or else an empty set."""
        from tokenizers.pre_tokenizers import ByteLevel

        for names in ([f"<0x{byte:02X}>" for byte in range(256)], ByteLevel.alphabet()):
            ids = [token for name in names if (token := self._pieces.token_to_id(name)) is not None]
            if len(ids) == 256:
                return frozenset(ids)
        return frozenset()

    @property
    def prefix_id(self) -> int:
        beginning = self._named.get("bos_token")
        token = self._pieces.token_to_id(beginning) if beginning else None
        return self.end_of_text_id if token is None else int(token)

    def encode_as_released(self, text: str) -> list[int]:
        return list(self._pieces.encode(writable(text), add_special_tokens=True).ids)

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return self._vocab_size

    def encode(self, text: str) -> list[int]:
        encoding = self._pieces.encode(writable(text), add_special_tokens=False)
        return encoding.ids if self._spellable.isdisjoint(encoding.ids) else self._divided(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._pieces.encode_batch_fast([writable(text) for text in texts], add_special_tokens=False)
        return [
            encoding.ids if self._spellable.isdisjoint(encoding.ids) else self._divided(text)
            for encoding, text in zip(encoded, texts, strict=True)
        ]

    def _divided(self, text: str) -> list[int]:
        """Encode a text that spells special tokens. It is divided within each of their names."""
        text = writable(text)
        encoding = self._pieces.encode(text, add_special_tokens=False)
        tokens = zip(encoding.ids, encoding.offsets, strict=True)
        cuts = [stop - 1 for token, (start, stop) in tokens if token in self._spellable and stop - 1 > start]
        if not cuts:
            # Names of a single character cannot be divided, so they are left out.
            return [token for token in encoding.ids if token not in self._spellable]
        return [token for start, stop in pairwise([0, *cuts, len(text)]) for token in self.encode(text[start:stop])]

    def encode_column(self, texts: Any, end: bool = True) -> Encoded:
        return arrow_text.encode_lists(texts, self.encode_batch, self.end_of_text_id if end else None)

    def decode(self, ids: Sequence[int], show_special: bool = False) -> str:
        checked = [self._checked(int(token)) for token in ids]
        return str(self._pieces.decode(checked, skip_special_tokens=not show_special))

    def piece(self, token: int) -> str:
        """Return the vocabulary's entry for an id, or "" if it has none. In byte-level BPE, a space is U+0120."""
        return str(self._pieces.id_to_token(token) or "")

    def is_reserved(self, token: int) -> bool:
        return token in self._reserved

    def is_byte(self, token: int) -> bool:
        return token in self._bytes


def _special_names(config: str | None) -> dict[str, str]:
    """Return the names of special tokens in ``tokenizer_config.json``, such as ``eos_token``.

    Raises:
        RequestError: the file is damaged.
    """
    if config is None:
        return {}
    try:
        entries = json.loads(config).items()
    except (ValueError, AttributeError):
        raise RequestError(f"{CONFIG_NAME} is damaged") from None
    named = {key: entry.get("content") if isinstance(entry, dict) else entry for key, entry in entries}
    return {key: name for key, name in named.items() if key.endswith("_token") and isinstance(name, str)}
