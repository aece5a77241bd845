"""Small token shards for tests of the data loader."""

from pathlib import Path

import numpy as np

from pipeline.tokens.indexed_dataset import IndexedDatasetWriter

END = 2


def documents(lengths: list[int], first: int = 10) -> list[np.ndarray]:
    """Documents of these lengths, whose tokens count up from ``first``; every document ends in ``END``."""
    texts = []
    for length in lengths:
        ids = np.arange(first, first + length)
        first += length
        ids[-1:] = END
        texts.append(ids)
    return texts


def write(folder: Path, split: str, shards: list[list[np.ndarray]], kind: type = np.uint16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, texts in enumerate(shards):
        writer = IndexedDatasetWriter(folder / f"{split}-{number:05d}", np.dtype(kind))
        lengths = np.array([len(text) for text in texts], np.int64)
        writer.add(np.concatenate([np.zeros(0, np.int64), *texts]), lengths)
        writer.finish()
    return folder
