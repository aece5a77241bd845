"""The seeded sample of documents used to train a tokenizer. Only the sample is held in memory."""

from pathlib import Path
from typing import Any

import numpy as np

from artefacts import repair_hints
from artefacts.hashing import Pieces, keyed_hashes, threshold
from tokenizer.base import Tokenizer

#: Number of rows whose ids are converted to Python objects at a time.
_ROWS = 16_384
#: Compression is measured on this much text, in bytes.
MEASURED_BYTES = 2_000_000


def sample(folder: Path, budget: int, seed: int, targets: bool = False) -> list[str]:
    """Draw a sample of about ``budget`` bytes of text from the documents artefact, in document order.

    With ``targets``, each text is followed by its target, on a new line.

    Raises:
        RequestError: a shard is damaged.
    """
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    paths = sorted(folder.glob("clean-*.parquet"))

    def pieces() -> Pieces:
        for path in paths:
            with repair_hints.reading("documents", path):
                columns_read = ["id", "bytes", *(["target"] if targets else [])]
                for batch in parquet.ParquetFile(path).iter_batches(_ROWS, columns=columns_read):
                    hashes = keyed_hashes(seed, "tokenizer", batch.column("id").to_pylist())
                    sizes = batch.column("bytes").to_numpy()
                    if targets:
                        sizes = sizes + compute.binary_length(batch.column("target").fill_null("")).to_numpy()
                    yield hashes, sizes

    most = threshold(pieces, budget)
    columns = ["text", *(["target"] if targets else [])]
    texts: list[str] = []
    for path in paths:
        with repair_hints.reading("documents", path):
            file = parquet.ParquetFile(path)
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()
                taken = (
                    np.ones(len(ids), bool) if most is None else keyed_hashes(seed, "tokenizer", ids) <= np.uint64(most)
                )
                if taken.any():
                    chosen = file.read_row_group(group, columns=columns).filter(pyarrow.array(taken))
                    parts = (chosen[column].to_pylist() for column in columns)
                    texts += ("\n".join(filter(None, row)) for row in zip(*parts, strict=True))
    return texts


def measured(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Return the counts for the manifest: the sample's size, and bytes per token, measured at its start."""
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
