"""Baselines equal their definition, and a model's loss equals a plain computation."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs.load import load_recipe
from tests.support.training.engine_job import RECIPE, SyntheticTokens
from tokenizer.special_tokens import IGNORED
from training.evaluate.baselines import bigram_nats, compressed_bytes
from training.evaluate.loss import measure
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.objective import Objective

VOCABULARY = 7


def streams(seed: int, *lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [(generator.random(n) ** 2 * (VOCABULARY - 1)).astype(np.uint16) for n in lengths]


def witten_bell(train: list[np.ndarray], before: int, after: int) -> float:
    """Return p(after | before), computed with dictionaries."""
    unigram = Counter(dict.fromkeys(range(VOCABULARY), 1))
    pairs: Counter[tuple[int, int]] = Counter()
    for stream in train:
        unigram.update(stream.tolist())
        pairs.update(pairwise(stream.tolist()))
    followers = [count for (first, _), count in pairs.items() if first == before]
    prior = unigram[after] / unigram.total()
    types = max(1, len(followers))
    return (pairs[before, after] + types * prior) / (sum(followers) + types)


def test_bigram_is_witten_bell() -> None:
    train, validation = streams(0, 200, 50), streams(1, 40, 9)
    pairs = [pair for stream in validation for pair in pairwise(stream.tolist())]
    expected = -sum(math.log(witten_bell(train, before, after)) for before, after in pairs)
    assert bigram_nats(train, validation, VOCABULARY) == pytest.approx(expected, rel=1e-9)


def test_bigram_probabilities_sum_to_one() -> None:
    train = streams(0, 200)
    # Token 6 never occurs in training: as a context it has no followers at all.
    for before in range(VOCABULARY):
        pairs = [np.array([before, after], np.uint16) for after in range(VOCABULARY)]
        total = sum(math.exp(-bigram_nats(train, [pair], VOCABULARY)) for pair in pairs)
        assert total == pytest.approx(1.0)


def test_repeated_text_compresses() -> None:
    text = b"the same words and the same words again " * 50
    size = compressed_bytes(text)
    assert 0 < size < len(text) / 10
    assert compressed_bytes(text, level=1) >= size


def test_the_measured_loss_is_the_sum_over_targets() -> None:
    recipe = load_recipe(RECIPE)
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    init_weights(model, 3)
    batches = [SyntheticTokens(recipe).global_batch(step) for step in range(2)]
    measured = measure(model, Objective(recipe.model, recipe.train), batches, torch.device("cpu"), "test")
    with torch.no_grad():
        expected = sum(
            float(F.cross_entropy(model(b.inputs).flatten(0, 1), b.labels.flatten(), reduction="sum")) for b in batches
        )
    assert measured.targets == sum(int((b.labels != IGNORED).sum()) for b in batches)
    assert measured.nats == pytest.approx(expected, rel=1e-5)
    assert measured.bits_per_byte(1000) == pytest.approx(expected / math.log(2) / 1000, rel=1e-5)
    assert list(measured.loads) == ["model.layers.1", "model.layers.2"]
    assert all(sum(load) == pytest.approx(8) for load in measured.loads.values())
