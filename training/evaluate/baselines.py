"""Baselines: a bigram model on the same tokens, and a general-purpose compressor on the same text."""

import math

import numpy as np
import zstandard
from numpy.typing import NDArray


def bigram_nats(train: list[NDArray[np.integer]], validation: list[NDArray[np.integer]], vocab_size: int) -> float:
    """Return a bigram model's total loss in nats on the validation tokens, excluding each stream's first token.

    The model uses Witten-Bell smoothing (Witten and Bell, 1991). Let c(a, b) be the number of times that token b
    follows token a, c(a) the sum of c(a, b) over b, and T(a) the number of distinct tokens that follow a. Then
    p(b|a) = (c(a, b) + T(a) p(b)) / (c(a) + T(a)), where p(b) is the add-one unigram probability.
    """
    unigram = np.ones(vocab_size, dtype=np.int64)
    for stream in train:
        unigram += np.bincount(stream, minlength=vocab_size)
    log_total = math.log(unigram.sum())
    pairs = np.concatenate([_pairs(stream, vocab_size) for stream in train])
    keys, counts = np.unique(pairs, return_counts=True)
    context = np.bincount(keys // vocab_size, weights=counts, minlength=vocab_size)
    followers = np.bincount(keys // vocab_size, minlength=vocab_size)
    nats = 0.0
    for stream in validation:
        wanted = _pairs(stream, vocab_size)
        index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        seen = np.where(keys[index] == wanted, counts[index], 0)
        before, after = wanted // vocab_size, wanted % vocab_size
        prior = np.exp(np.log(unigram[after]) - log_total)
        # An unseen context has T = c = 0, so only the prior counts.
        types = np.maximum(followers[before], 1)
        nats -= float(np.log((seen + types * prior) / (context[before] + types)).sum())
    return nats


def compressed_bytes(text: bytes, level: int = 19) -> int:
    """Return the size of a text compressed as a single zstd frame."""
    return len(zstandard.ZstdCompressor(level=level).compress(text))


def _pairs(stream: NDArray[np.integer], vocab_size: int) -> NDArray[np.int64]:
    wide = stream.astype(np.int64)
    return wide[:-1] * vocab_size + wide[1:]
