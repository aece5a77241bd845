"""Near duplicates: similarity estimates, recall and precision on planted copies, and clusters."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.clean import NearDuplicatesSection
from pipeline import dedup
from pipeline.dedup.minhash import band_keys, sketch
from pipeline.dedup.similarity import Signatures, bins, least_agreement
from pipeline.dedup.union_find import flatten, join
from tests.support.pipeline import corpora, dedup_corpus


@pytest.mark.parametrize("size", [1, 3, 12, 60, 300, 3000])
def test_estimate_is_unbiased_for_short_and_long(size):
    """The bias is below 3 standard errors, and the variance at most that of MinHash with as many hashes."""
    trials, count = 120, 512
    shared = round(size * 2 * 0.8 / 1.8)
    hashes = np.random.default_rng(size).integers(0, 2**64, (trials, 2 * size - shared), dtype=np.uint64)
    both = np.concatenate([hashes[:, :size], hashes[:, size - shared :]])
    owner = np.repeat(np.arange(2 * trials), size)
    sketches = sketch(both.reshape(-1), owner, 2 * trials, count)
    estimates = (sketches[:trials] == sketches[trials:]).mean(axis=1)
    truth = shared / (2 * size - shared)
    deviation = np.sqrt(truth * (1 - truth) / count)
    assert abs(estimates.mean() - truth) <= 3 * deviation / np.sqrt(trials)
    assert estimates.std() <= 1.2 * deviation


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=30), min_size=2, max_size=6), st.integers(1, 64))
def test_sketch_of_a_union_is_the_least_of_the_sketches(sets, count):
    """The property that makes sketches of sets of different sizes comparable. Repeats and neighbors change nothing."""
    union = list(itertools.chain(*sets))

    def sketches(*groups):
        flat = np.array(list(itertools.chain(*groups)), np.uint64)
        return sketch(flat, np.repeat(np.arange(len(groups)), [len(group) for group in groups]), len(groups), count)

    alone = np.concatenate([sketches(one) for one in sets])
    assert np.array_equal(sketches(*sets), alone)
    assert np.array_equal(sketches(union + union), sketches(union))
    of_union = sketches(union)[0]
    # A bin of the union is a bin of one of the sets: the lowest round counts, then the lowest value.
    assert all(value in alone[:, at] for at, value in enumerate(of_union.tolist()))


def test_bands_do_not_share_keys():
    keys = band_keys(np.zeros((1, 12), np.uint32), 4, 3)
    assert len(set(keys[0].tolist())) == 4


def test_planted_copies_are_detected(tmp_path):
    originals, copies, truth = dedup_corpus.planted(400)
    verdicts, _ = dedup_corpus.decide(tmp_path, [originals, copies], dedup_corpus.section(near=True))
    assert not any(verdicts[:400])
    wrong = [
        like for like, verdict in zip(truth, verdicts[400:], strict=True) if (like >= 0.8) != (verdict == dedup.NEAR)
    ]
    assert sum(like >= 0.8 for like in truth) > 100 < sum(like < 0.8 for like in truth)
    # Precision fails at 0.05 on the side that removes too much, recall at a probability of 1 in 100.
    assert all(like > 0.74 for like in wrong)
    assert sum(like >= 0.8 for like in wrong) <= 3


@pytest.mark.parametrize(("threshold", "rows"), [(0.6, 3), (0.9, 6), (1.0, 6)])
def test_threshold(tmp_path, threshold, rows):
    originals, copies, truth = dedup_corpus.planted(150, seed=3)
    copies[:5] = originals[:5]
    keys = dedup_corpus.section(near=True, threshold=threshold, rows=rows)
    decided, _ = dedup_corpus.decide(tmp_path, [originals, copies], keys)
    for like, verdict in zip([1.0] * 5 + truth[5:], decided[150:], strict=True):
        if not threshold - 0.08 < like < min(threshold + 0.05, 1):
            assert (verdict == dedup.NEAR) == (like >= threshold), like


def test_short_documents_with_a_changed_word_are_kept(tmp_path):
    """Sentences of 12 words with one word changed have a similarity of 3/13 (in the middle) to 7/9 (at an end)."""
    rng = random.Random(1)
    sentences = [[f"w{rng.randrange(10**6)}" for _ in range(12)] for _ in range(100)]
    middle = [[*words[:6], "other", *words[7:]] for words in sentences]
    commas = [", ".join(words).upper() for words in sentences]
    parts = [[" ".join(words) for words in group] for group in (sentences, middle)] + [commas]
    verdict, _ = dedup_corpus.decide(tmp_path, parts, dedup_corpus.section(near=True))
    assert verdict == [0] * 200 + [dedup.NEAR] * 100


def test_documents_without_words_are_kept(tmp_path):
    texts = ["", "...", "--- !!", "", "one", "one", "…"]
    verdict, _ = dedup_corpus.decide(tmp_path, [texts, [], ["!", "One?"]], dedup_corpus.section(near=True))
    # "…" is not ASCII, so it counts as a word.
    assert verdict == [0, 0, 0, 0, 0, 2, 0, 0, 2]


def test_exact_wins_over_near(tmp_path):
    (text,) = corpora.texts(1)
    parts = [[text], [text + " !", text], ["different"]]
    assert dedup_corpus.decide(tmp_path / "a", parts, dedup_corpus.section(exact=True, near=True))[0] == [0, 2, 1, 0]
    assert dedup_corpus.decide(tmp_path / "b", parts, dedup_corpus.section(near=True))[0] == [0, 2, 2, 0]


def test_a_chain_is_one_cluster(tmp_path):
    """Each step keeps 0.9. The ends of the chain share less than 0.8, and are removed all the same."""
    words = [f"w{number}" for number in range(400)]
    chain = [" ".join(words[at * 20 : at * 20 + 300]) for at in range(5)]
    assert dedup_corpus.jaccard(chain[0], chain[1]) > 0.85 > 0.7 > dedup_corpus.jaccard(chain[0], chain[4])
    assert dedup_corpus.decide(tmp_path, [chain], dedup_corpus.section(near=True))[0] == [0, 2, 2, 2, 2]


def test_many_copies_are_compared_in_proportion(tmp_path, monkeypatch):
    """30,000 copies of a document form 450 million pairs. Each copy is compared with the first or the previous one."""
    are_similar, compared = Signatures.are_similar, []

    def counted(self, one, other):
        compared.append(len(one))
        return are_similar(self, one, other)

    monkeypatch.setattr(Signatures, "are_similar", counted)
    verdict, _ = dedup_corpus.decide(
        tmp_path, [["the same few words again"] * 10_000] * 3, dedup_corpus.section(near=True)
    )
    assert verdict == [0] + [2] * 29_999
    bands = dedup_corpus.section(near=True).near_dedup.bands
    assert 29_999 <= sum(compared) <= 2 * bands * 30_000


def test_bands_that_miss_most_pairs_are_refused():
    with pytest.raises(ValueError, match="20 bands of 6 rows find only 62%"):
        dedup_corpus.section(near=True, threshold=0.6)


def test_agreement_is_never_beyond_the_bins():
    for threshold in (0.05, 0.5, 0.8, 0.999, 1.0):
        for bands, rows in ((1, 1), (20, 6), (256, 64)):
            near = NearDuplicatesSection.model_construct(threshold=threshold, bands=bands, rows=rows)
            assert 0 <= least_agreement(near) <= bins(near)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60), st.integers(1, 9))
def test_components(count, edges, step):
    edges = [(one % count, other % count) for one, other in edges]
    parent = np.arange(count)
    for at in range(0, len(edges), step):
        one, other = np.array(edges[at : at + step]).T
        join(parent, one, other)
    flatten(parent)
    labels = list(range(count))
    for _ in range(count):
        for one, other in edges:
            labels[one] = labels[other] = min(labels[one], labels[other])
    assert parent.tolist() == labels


def test_a_long_path_and_a_star_take_few_rounds(monkeypatch):
    """The number of steps is logarithmic in the length. One per edge of the path would be 200,000."""
    same, rounds, count = np.array_equal, [], 200_000

    def counted(one, other):
        rounds.append(len(one))
        assert len(rounds) <= 3 * math.log2(count)
        return same(one, other)

    monkeypatch.setattr(np, "array_equal", counted)
    for one, other in [
        (np.arange(1, count), np.arange(count - 1)),
        (np.full(count - 1, count - 1), np.arange(count - 1)),
    ]:
        parent = np.arange(count)
        rounds.clear()
        join(parent, one, other)
        flatten(parent)
        assert not parent.any() and len(rounds) > 1
