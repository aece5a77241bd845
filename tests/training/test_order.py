"""The order of samples is a permutation, a pure function, and the same on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.indexed_dataset import IndexedDatasetWriter
from training.data.batch import IGNORED
from training.data.order import permute, sample_indices
from training.data.pretraining import PretrainingData, TokenWindows


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_epochs_are_whole_and_differ() -> None:
    size = 101
    first, second = (sample_indices(epoch * size, size, size, seed=5) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(size))
    assert list(first) != list(second)
    assert list(first) != list(sample_indices(0, size, size, seed=6))


def test_order_is_shuffled() -> None:
    order = sample_indices(0, 1000, 1000, seed=1)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 500), count=st.integers(1, 300), size=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_any_stretch_is_a_part_of_the_whole(first: int, count: int, size: int, seed: int) -> None:
    whole = sample_indices(0, first + count, size, seed)
    assert list(sample_indices(first, count, size, seed)) == list(whole[first:])


@pytest.fixture
def folder(tmp_path):
    for shard, tokens in enumerate((np.arange(1000), np.arange(1000, 1400))):
        writer = IndexedDatasetWriter(tmp_path / f"train-{shard:05d}", np.dtype(np.uint16))
        writer.add(tokens.astype(np.uint16), np.array([len(tokens)]))
        writer.finish()
    return tmp_path


def test_global_batches_are_the_same_on_any_number_of_ranks(folder) -> None:
    data = PretrainingData(TokenWindows(folder, "train", 16), 8, seed=3)
    for step in (0, 7, 20):
        whole = data.micro_batches(step, 0, 1, 8)[0].inputs
        for ranks, micro in ((1, 2), (2, 2), (4, 1), (8, 1)):
            rows = [b.inputs for rank in range(ranks) for b in data.micro_batches(step, rank, ranks, micro)]
            seen = {tuple(row.tolist()) for batch in rows for row in batch}
            assert seen == {tuple(row.tolist()) for row in whole}


def test_validation_is_spread_over_the_whole_split(folder) -> None:
    batches = TokenWindows(folder, "train", 16).spread(10, 4)
    firsts = [row[0] for batch in batches for row in batch.inputs.tolist()]
    assert len(firsts) == 10
    assert firsts[0] == 0
    assert firsts[-1] > 1300
    assert len(TokenWindows(folder, "train", 16).spread(10_000, 4)) == -(-(62 + 24) // 4)


def test_labels_follow_inputs_and_windows_stay_in_their_shard(folder) -> None:
    windows = TokenWindows(folder, "train", 16)
    assert len(windows) == 999 // 16 + 399 // 16
    batch = windows.read(np.arange(len(windows)))
    assert (batch.labels == batch.inputs + 1).all()


def test_in_order_predicts_every_token_once(folder) -> None:
    batches = TokenWindows(folder, "train", 16).in_order(batch=5)
    labels = [label for batch in batches for label in batch.labels.flatten().tolist() if label != IGNORED]
    assert labels == [*range(1, 1000), *range(1001, 1400)]
    limited = TokenWindows(folder, "train", 16).in_order(batch=5, limit=100)
    assert sum(batch.targets for batch in limited) == 100
