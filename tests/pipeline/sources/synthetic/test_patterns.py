"""The patterns source: two characters determine a walk, and it does not depend on the parts."""

from itertools import pairwise

import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.run_layout import RunLayout
from pipeline.documents import stage as documents
from pipeline.reports.preview import preview
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.synthetic import base
from pipeline.sources.synthetic.base import ALPHABET
from pipeline.sources.synthetic.patterns import PatternsSource, walk
from tests.support.pipeline.corpora import recipe


def _read(source):
    bad = BadInputs()
    documents_read = [document for part in source.parts(1) for document in source.read(part, bad)]
    assert bad.good == len(documents_read) and not bad.reasons
    return documents_read


def _patterns_recipe(root, *more):
    return recipe(root, "data.source.kind=patterns", "data.source.documents=300", *more)


def _texts(recipe):
    return parquet.read_table(RunLayout.of(recipe).documents / "clean-00000.parquet")["text"].to_pylist()


def test_a_walk_wraps_around():
    assert walk(0, 2, 8) == "acegikmo"
    assert walk(61, 1, 64) == "9" + ALPHABET + "a"
    assert walk(60, 61, 3) == "876"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(2, 200),
    st.integers(0, 100),
    st.integers(1, 61),
    st.integers(0),
    st.integers(1, 500),
)
def test_documents_follow_the_settings_for_any_parts(count, least, more, largest_step, seed, part_bytes):
    source = PatternsSource(count, least, least + more, largest_step, seed)
    documents_read = _read(source)
    assert [document.id for document in documents_read] == [f"patterns:{number}" for number in range(count)]
    assert source.size(1) == sum(part.size for part in source.parts(1))
    for text in (document.text for document in documents_read):
        places = [ALPHABET.index(letter) for letter in text]
        step = (places[1] - places[0]) % len(ALPHABET)
        assert least <= len(text) <= least + more and 1 <= step <= largest_step
        assert all((b - a) % len(ALPHABET) == step for a, b in pairwise(places))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_PART_BYTES", part_bytes)
        assert _read(source) == documents_read


def test_every_start_step_and_length_occurs():
    documents_read = [document.text for document in _read(PatternsSource(3000, 2, 4, 3, 7))]
    assert {text[0] for text in documents_read} == set(ALPHABET)
    assert {len(text) for text in documents_read} == {2, 3, 4}
    assert {(ALPHABET.index(text[1]) - ALPHABET.index(text[0])) % 62 for text in documents_read} == {1, 2, 3}


def test_the_documents_stage(tmp_path, monkeypatch):
    recipe = _patterns_recipe(tmp_path)
    published = documents.build(recipe)
    assert published is not None and published.counts["documents"] == 300 and not published.counts["dropped"]
    assert documents.build(recipe) is None
    monkeypatch.setattr(base, "_PART_BYTES", 50_000)
    kept = _texts(recipe)
    parted = _patterns_recipe(tmp_path / "parts", "data.workers=2")
    documents.build(parted)
    assert _texts(parted) == kept
    assert documents.build(_patterns_recipe(tmp_path, "run.seed=2")) is not None
    assert not set(_texts(recipe)) & set(kept)


def test_a_preview_and_the_rules_that_would_drop_them(tmp_path):
    assert any("patterns" in line for line in preview(_patterns_recipe(tmp_path), 20))
    published = documents.build(
        _patterns_recipe(tmp_path, "data.source.min_chars=2", "data.source.max_chars=3", "data.clean.min_chars=0")
    )
    # 62 letters, 4 steps and 2 lengths give 496 texts, so some of 300 random ones are equal.
    assert published is not None and published.counts["documents"] + sum(published.counts["dropped"].values()) == 300
    assert 200 < published.counts["documents"] < 300
    assert published.details["sources"] == {"patterns": {"alphabet": ALPHABET}}
