"""The order of samples is a permutation and a pure function, and is the same on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts.errors import RequestError
from tests.support.training.shards import write
from training.data.order import BLOCK, Mixture, indices_at, permute, quotas, sample_indices
from training.data.pretraining import PretrainingData
from training.data.windows import TokenWindows


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_epochs_are_complete_and_differ() -> None:
    size = 101
    first, second = (sample_indices(epoch * size, size, size, seed=5) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(size))
    assert list(first) != list(second)
    assert list(first) != list(sample_indices(0, size, size, seed=6))


def test_order_is_shuffled() -> None:
    order = sample_indices(0, 1000, 1000, seed=1)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


def test_order_equals_the_recorded_one() -> None:
    """These samples may never change: a run must resume with the same ones after an update of Millrace."""
    recorded = {
        (95, 101, 5): [75, 49, 80, 20, 84, 89, 87, 66, 26, 14, 61, 15],
        (123456789, 9_765_525, 1234): [5092246, 4380576, 7136813, 3086446, 6545783, 6273216],
    }
    for (first, size, seed), indices in recorded.items():
        assert sample_indices(first, len(indices), size, seed).tolist() == indices
        positions = first + np.arange(len(indices))
        which, located = Mixture([size], [0.3], seed).locate(positions)
        assert located.tolist() == indices and not which.any()


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 500), count=st.integers(1, 300), size=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_any_range_is_a_slice_of_the_complete_order(first: int, count: int, size: int, seed: int) -> None:
    whole = sample_indices(0, first + count, size, seed)
    assert list(sample_indices(first, count, size, seed)) == list(whole[first:])
    picked = np.arange(first, first + count)[::3]
    assert list(indices_at(picked, size, seed)) == list(whole[picked])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_quotas_follow_the_weights(weights: list[float]) -> None:
    places = quotas(weights)
    assert places.sum() == BLOCK and places.min() >= 1
    exact = np.array(weights) / sum(weights) * BLOCK
    # Within one slot of the weight, except where others were raised to their minimum of one slot.
    lifted = int((exact < 1).sum())
    assert (np.abs(places - exact) <= 1 + lifted).all()
    assert (quotas([w * 8 for w in weights]) == places).all()


def test_every_block_holds_the_quotas_and_every_epoch_each_sample_once() -> None:
    sizes, weights = [700, 20_000, 33], [0.3, 0.699, 0.001]
    mixture = Mixture(sizes, weights, seed=9)
    which, indices = mixture.locate(np.arange(3 * BLOCK))
    for block in range(3):
        here = which[block * BLOCK : (block + 1) * BLOCK]
        assert np.bincount(here).tolist() == quotas(weights).tolist()
        # Scattered: every sixteenth of the block has roughly its share.
        shares = [np.mean(part == 0) for part in np.split(here, 16)]
        assert min(shares) > 0.2 and max(shares) < 0.4
    for number, size in enumerate(sizes):
        counts = np.bincount(indices[which == number], minlength=size)
        whole, rest = divmod(int((which == number).sum()), size)
        assert counts.max() <= whole + bool(rest) and counts.min() >= whole
    assert mixture.epochs(3 * BLOCK) == pytest.approx(np.bincount(which) / sizes)


def test_a_mixture_is_a_pure_function_of_the_position() -> None:
    mixture = Mixture([50, 5000], [1, 4], seed=2)
    whole = mixture.locate(np.arange(2 * BLOCK))
    positions = np.random.default_rng(0).integers(0, 2 * BLOCK, 500)
    for all_of, picked in zip(whole, mixture.locate(positions), strict=True):
        assert (all_of[positions] == picked).all()
    other = Mixture([50, 5000], [1, 4], seed=3).locate(np.arange(2 * BLOCK))
    assert (whole[0] != other[0]).any() and (whole[1] != other[1]).any()


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "one", "train", [[np.arange(1000)], [np.arange(1000, 1400)]])


@pytest.fixture
def mixed(tmp_path, folder):
    other = write(tmp_path / "two", "train", [[np.arange(2000, 2300)]])
    samples = {"b": TokenWindows(folder, "train", 16), "a": TokenWindows(other, "train", 16)}
    return PretrainingData(samples, 8, seed=3, weights={"a": 0.25, "b": 0.75})


@pytest.mark.parametrize("several", [False, True])
def test_global_batches_are_the_same_on_any_number_of_ranks(folder, mixed, several) -> None:
    data = mixed if several else PretrainingData({"one": TokenWindows(folder, "train", 16)}, 8, seed=3)
    for step in (0, 7, 20, BLOCK // 8):
        whole = data.micro_batches(step, 0, 1, 8)[0].inputs
        for ranks, micro in ((1, 2), (2, 2), (4, 1), (8, 1)):
            rows = [b.inputs for rank in range(ranks) for b in data.micro_batches(step, rank, ranks, micro)]
            seen = {tuple(row.tolist()) for batch in rows for row in batch}
            assert seen == {tuple(row.tolist()) for row in whole}


def test_sources_blend_by_weight_in_any_order(folder, tmp_path, mixed) -> None:
    firsts = np.concatenate([mixed.micro_batches(s, 0, 1, 8)[0].inputs[:, 0].numpy() for s in range(BLOCK // 8)])
    assert (firsts >= 2000).sum() == BLOCK // 4
    turned = {"a": TokenWindows(tmp_path / "two", "train", 16), "b": TokenWindows(folder, "train", 16)}
    again = PretrainingData(turned, 8, seed=3, weights={"b": 0.75, "a": 0.25})
    assert (again.micro_batches(5, 0, 1, 8)[0].inputs == mixed.micro_batches(5, 0, 1, 8)[0].inputs).all()
    assert mixed.epochs(BLOCK // 8) == pytest.approx({"a": BLOCK / 4 / 18, "b": BLOCK * 3 / 4 / 86})


def test_less_than_one_sample_is_refused(folder) -> None:
    with pytest.raises(RequestError, match="web: the training shards hold less than one sample of 2048 tokens"):
        PretrainingData({"web": TokenWindows(folder, "train", 2048)}, 8, seed=3)
