"""What a tokenizer makes of the text that it is for."""

from typing import Any

from tokenizer.base import Tokenizer

#: Text over which compression is measured, in bytes.
MEASURED_BYTES = 2_000_000


def measured(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Counts for the manifest: size of a sample and, over its beginning, bytes a token."""
    sizes = [len(text.encode()) for text in texts]
    count = size = 0
    while count < len(texts) and size < MEASURED_BYTES:
        size += sizes[count]
        count += 1
    tokens = sum(map(len, tokenizer.encode_batch(texts[:count])))
    return {
        "sample_documents": len(texts),
        "sample_bytes": sum(sizes),
        "vocab_size": tokenizer.vocab_size,
        "measured_bytes": size,
        "measured_tokens": tokens,
        "bytes_per_token": round(size / max(tokens, 1), 4),
    }
