"""A tokenizer of Millrace in Hugging Face's format: ``tokenizer.json`` and ``tokenizer_config.json``.

The ids are the same for any text, except where it spells out a reserved token: transformers reads that as the token,
which chat templates need, and Millrace as ordinary text.
"""

import json
from typing import Any

from tokenizer.base import Tokenizer
from tokenizer.bpe import BpeTokenizer

#: SentencePiece's sign for a space.
_SPACE_MARK = "\u2581"
_NEWLINE = "\n"


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """``tokenizer.json`` of a tokenizer that was trained here."""
    converted = _of_bpe(tokenizer) if isinstance(tokenizer, BpeTokenizer) else _of_characters(tokenizer)
    return json.dumps(json.loads(converted.to_str()), ensure_ascii=False)


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """``tokenizer_config.json``: the class that reads ``tokenizer.json`` as it is, and the special tokens by name."""
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
    """A piece of SentencePiece's, or of ``tokenizer.json``, as text: both write a space their own way."""
    return piece.replace(_SPACE_MARK, " ")


def _of_bpe(tokenizer: BpeTokenizer) -> Any:
    """A byte-pair encoding with byte fallback over the same pieces.

    A space is a space here: SentencePiece's sign for it is then a character like any other, which falls back to its
    bytes, as in :class:`BpeTokenizer`.
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
        # It joins with nothing, and unlike the reserved tokens it is text.
        converted.add_tokens([AddedToken(_NEWLINE, special=False, normalized=False)])
    return converted


def _of_characters(tokenizer: Tokenizer) -> Any:
    """A word a character."""
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
