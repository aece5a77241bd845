"""The documents that a tokenizer is trained on: a seeded sample, in memory of the sample's size alone."""

from pathlib import Path

import numpy as np

from artefacts import repair
from tokenizer.sample import Pieces, keyed_hashes, threshold

#: Rows whose ids become Python objects at once.
_ROWS = 16_384


def sample(folder: Path, budget: int, seed: int) -> list[str]:
    """Texts of about ``budget`` bytes in all from the documents artefact, in their order on disk.

    Raises:
        RequestError: a shard is damaged.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    paths = sorted(folder.glob("clean-*.parquet"))

    def pieces() -> Pieces:
        for path in paths:
            with repair.reading("documents", path):
                for batch in parquet.ParquetFile(path).iter_batches(_ROWS, columns=["id", "bytes"]):
                    hashes = keyed_hashes(seed, "tokenizer", batch.column("id").to_pylist())
                    yield hashes, batch.column("bytes").to_numpy()

    most = threshold(pieces, budget)
    texts: list[str] = []
    for path in paths:
        with repair.reading("documents", path):
            file = parquet.ParquetFile(path)
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["id"])["id"].to_pylist()
                taken = (
                    np.ones(len(ids), bool) if most is None else keyed_hashes(seed, "tokenizer", ids) <= np.uint64(most)
                )
                if taken.any():
                    texts += (
                        file.read_row_group(group, columns=["text"])["text"].filter(pyarrow.array(taken)).to_pylist()
                    )
    return texts
