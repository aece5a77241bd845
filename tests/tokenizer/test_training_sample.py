"""The tokenizer's training sample does not depend on the division into shards."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts.hashing import keyed_hashes, smallest, threshold
from configs.run_layout import RunLayout
from tests.support.pipeline.corpora import of_jsonl, texts, write_jsonl
from tests.support.tokenizers import publish_documents
from tokenizer import training_sample


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 30)), min_size=1, max_size=60, unique_by=lambda d: d[0]
    ),
    st.integers(1, 300),
    st.integers(1, 7),
    st.booleans(),
)
def test_a_threshold_over_shards_selects_the_same_as_over_all_documents(documents, budget, step, crowded):
    hashes = np.array([hash_ >> 40 if crowded else hash_ for hash_, _ in documents], np.uint64)
    hashes, first = np.unique(hashes, return_index=True)
    sizes = np.array([size for _, size in documents], np.int64)[first]
    most = threshold(
        lambda: ((hashes[at : at + step], sizes[at : at + step]) for at in range(0, len(hashes), step)), budget
    )
    taken = np.ones(len(hashes), bool) if most is None else hashes <= np.uint64(most)
    assert taken.tolist() == smallest(hashes, sizes, budget).tolist()


def test_texts_of_the_sample_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(training_sample, "_ROWS", 7)
    documents = texts(80)
    recipe = of_jsonl(tmp_path, write_jsonl(tmp_path / "source.jsonl", documents))
    publish_documents(recipe)
    hashes = keyed_hashes(3, "tokenizer", [f"made:{i}" for i in range(80)])
    chosen = smallest(hashes, np.array([len(text) for text in documents]), 20_000)
    assert 0 < chosen.sum() < 80
    expected = [text for text, taken in zip(documents, chosen, strict=True) if taken]
    assert training_sample.sample(RunLayout.of(recipe).documents, 20_000, 3) == expected


def test_no_documents(tmp_path):
    assert training_sample.sample(tmp_path, 1000, 0) == []
