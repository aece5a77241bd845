"""Cleaning rules, and that the documents depend on neither order of work nor workers."""

import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artefacts.layout import RunLayout
from configs.schema.data import CleanSection
from pipeline import clean, documents
from tests.pipeline.corpora import digests, of_jsonl, texts, write_jsonl


@pytest.mark.parametrize(
    ("raw", "form", "said"),
    [
        ("a\r\nb\rc\n", "NFC", "a\nb\nc"),
        ("\ufeff\n\n  x\x00\x07\x85y\t z \n", "NFC", "  xy\t z"),
        ("e\u0301", "NFC", "é"),
        ("e\u0301ﬁ", "none", "e\u0301ﬁ"),
        ("ﬁ", "NFKC", "fi"),
        ("a\ud800b", "NFC", "ab"),
    ],
)
def test_normalise(raw, form, said):
    assert clean.normalise(raw, form) == said


@given(st.text(alphabet=st.characters(exclude_categories=())), st.sampled_from(["NFC", "NFKC", "none"]))
def test_normalising_twice_changes_nothing_and_utf8_holds_it(text, form):
    once = clean.normalise(text, form)
    once.encode()
    assert clean.normalise(once, form) == once


def test_faults():
    section = CleanSection(min_chars=3, max_chars=5)
    assert [clean.fault("x" * n, section) for n in (0, 2, 3, 5, 6)] == [
        clean.TOO_SHORT,
        clean.TOO_SHORT,
        None,
        None,
        clean.TOO_LONG,
    ]
    assert clean.fault("", CleanSection(min_chars=0)) == clean.TOO_SHORT


def _corpus(folder):
    """Six files with duplicates within and across them, short documents and CRLF."""
    folder.mkdir()
    made = texts(120)
    for number in range(6):
        part = made[number * 20 : number * 20 + 20]
        write_jsonl(folder / f"{number}.jsonl", [*part, "short", part[0].replace("\n", "\r\n"), made[0]])
    return folder


def test_every_document_is_accounted_for(tmp_path):
    asked = of_jsonl(tmp_path, _corpus(tmp_path / "source"), "data.source.sample_bytes=40000")
    made = documents.build(asked)
    assert made is not None
    counts = made.counts
    assert counts["read_documents"] == 6 * 23
    assert counts["dropped"] == {clean.TOO_SHORT: 6, clean.DUPLICATE: 12}
    assert counts["documents"] + counts["outside_sample"] + sum(counts["dropped"].values()) == 6 * 23
    assert 35_000 < counts["bytes"] <= 40_000
    folder = RunLayout.of(asked).documents
    kept = parquet.read_table(folder / "clean-00000.parquet")
    assert kept["bytes"].to_pylist() == [len(text.encode()) for text in kept["text"].to_pylist()]
    rejected = parquet.read_table(folder / "rejected-00000.parquet")
    assert sorted(rejected["reason"].to_pylist()) == [clean.TOO_SHORT] * 6 + [clean.DUPLICATE] * 12
    assert documents.build(asked) is None


def test_duplicates_may_stay(tmp_path):
    made = documents.build(of_jsonl(tmp_path, _corpus(tmp_path / "source"), "data.clean.exact_dedup=false"))
    assert made is not None and made.counts["documents"] == 6 * 22


def test_the_first_of_duplicates_stays(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*texts(3), texts(3)[1]])
    asked = of_jsonl(tmp_path, path)
    documents.build(asked)
    kept = parquet.read_table(RunLayout.of(asked).documents / "clean-00000.parquet")
    assert kept["text"].to_pylist() == texts(3)


def test_another_seed_takes_another_sample(tmp_path):
    asked = of_jsonl(tmp_path, _corpus(tmp_path / "source"), "data.source.sample_bytes=30000")
    documents.build(asked)
    kept = parquet.read_table(RunLayout.of(asked).documents / "clean-00000.parquet")
    other = of_jsonl(tmp_path / "other", tmp_path / "source", "data.source.sample_bytes=30000", "run.seed=5")
    documents.build(other)
    others = parquet.read_table(RunLayout.of(other).documents / "clean-00000.parquet")
    assert kept["id"].to_pylist() != others["id"].to_pylist()


def test_the_same_bytes_with_any_number_of_workers(tmp_path):
    corpus = _corpus(tmp_path / "source")
    found = []
    for workers in (1, 2):
        asked = of_jsonl(tmp_path / str(workers), corpus, f"data.workers={workers}", "data.source.sample_bytes=40000")
        documents.build(asked)
        found.append(digests(RunLayout.of(asked).documents))
    assert found[0] == found[1] and "manifest.json" in found[0]
