"""Conversion of Millrace's tokenizers to Hugging Face's format: ``tokenizer.json`` and ``tokenizer_config.json``.

The converted tokenizer gives the same ids, with one exception. If a reserved token's name occurs in a text,
transformers encodes it as that token, which chat templates require, whereas Millrace encodes it as ordinary text.
"""

import json
from typing import Any

from tokenizer.base import Tokenizer
from tokenizer.bpe import SPACE_MARK, BpeTokenizer

_NEWLINE = "\n"


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return ``tokenizer.json`` for a tokenizer that Millrace trained."""
    converted = _of_bpe(tokenizer) if isinstance(tokenizer, BpeTokenizer) else _of_characters(tokenizer)
    return json.dumps(json.loads(converted.to_str()), ensure_ascii=False)


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return ``tokenizer_config.json``: the class that loads ``tokenizer.json``, and the names of special tokens."""
    names = {"eos_token": tokenizer.end_of_text_id, "unk_token": tokenizer.unknown_id}
    if tokenizer.has_chat_tokens:
        names |= {"bos_token": tokenizer.begin_id, "pad_token": tokenizer.pad_id}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **{key: tokenizer.piece(token) for key, token in names.items() if token is not None},
    }


def spelling(piece: str) -> str:
    """Return a SentencePiece piece as text."""
    return piece.replace(SPACE_MARK, " ")


def _of_bpe(tokenizer: BpeTokenizer) -> Any:
    """Convert to a BPE with byte fallback and the same pieces.

    The pieces contain real spaces. A literal U+2581 is an ordinary character that falls back to bytes, as in
    :class:`BpeTokenizer`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    ids = range(tokenizer.vocab_size)
    vocabulary = {spelling(tokenizer.piece(token)): token for token in ids}
    unknown = tokenizer.piece(tokenizer.unknown_id or 0)
    merges = [(spelling(left), spelling(right)) for left, right in tokenizer.merges()]
    converted = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, byte_fallback=True))
    converted.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    converted.add_special_tokens(_reserved(tokenizer))
    if _NEWLINE in vocabulary:
        # The newline never merges with anything, and unlike the reserved tokens, it is text.
        converted.add_tokens([AddedToken(_NEWLINE, special=False, normalized=False)])
    return converted


def _of_characters(tokenizer: Tokenizer) -> Any:
    """Convert to a word-level model in which each character is a word."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pieces = {tokenizer.piece(token): token for token in range(tokenizer.vocab_size)}
    unknown = tokenizer.piece(tokenizer.unknown_id or 0)
    converted = Tokenizer(models.WordLevel(pieces, unk_token=unknown))
    converted.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    converted.decoder = decoders.Fuse()
    converted.add_special_tokens(_reserved(tokenizer))
    return converted


def _reserved(tokenizer: Tokenizer) -> list[Any]:
    from tokenizers import AddedToken

    names = [tokenizer.piece(token) for token in range(tokenizer.vocab_size) if tokenizer.is_reserved(token)]
    return [AddedToken(name, special=True, normalized=False) for name in names]
