"""Exact duplicates of documents and lines, compared with their definition."""

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import dedup
from tests.support.pipeline import dedup_corpus

line = st.sampled_from(["", "a", " a", "abc", "abc ", "\tabc", "long line", "another one", "été à la mer", "x" * 40])
texts = st.lists(st.lists(line, min_size=1, max_size=5).map("\n".join), max_size=12)
places = st.lists(st.integers(0, 12), max_size=4)
sizes = st.sampled_from([1, 60, 1 << 20])


def _later_documents(documents):
    return [int(text in documents[:at]) for at, text in enumerate(documents)]


def _later_lines(documents, chars, gone):
    seen, removed = set(), []
    for at, text in enumerate(documents):
        for number, line in enumerate(text.split("\n")):
            line = line.strip()
            if len(line) >= chars and not gone[at]:
                if line in seen:
                    removed.append((at, number))
                seen.add(line)
    return removed


@settings(max_examples=40, deadline=None)
@given(documents=texts, places=places, chars=st.integers(0, 9), exact=st.booleans(), max_bytes=sizes)
def test_equal_their_definition(tmp_path_factory, documents, places, chars, exact, max_bytes):
    keys = dedup_corpus.section(exact=exact or not chars, lines=chars)
    folder = tmp_path_factory.mktemp("keys")
    verdict, lines = dedup_corpus.decide(folder, dedup_corpus.cut(documents, places), keys, max_bytes)
    expected = _later_documents(documents) if keys.exact_dedup else [0] * len(documents)
    assert verdict == expected
    assert lines == (_later_lines(documents, chars, expected) if chars else [])


@settings(max_examples=100, deadline=None)
@given(documents=texts, data=st.data())
def test_lines_are_removed_with_a_line_feed(documents, data):
    every = [(row, number) for row, text in enumerate(documents) for number in range(text.count("\n") + 1)]
    chosen = sorted(data.draw(st.sets(st.sampled_from(every)))) if every else []
    rows, numbers = [row for row, _ in chosen], [number for _, number in chosen]
    expected = [
        "\n".join(one for number, one in enumerate(text.split("\n")) if (row, number) not in chosen)
        for row, text in enumerate(documents)
    ]
    for column in (pyarrow.array(documents, pyarrow.string()), pyarrow.chunked_array([["x"], documents])[1:]):
        left = dedup.remove_lines(column, rows, numbers)
        assert left.type == pyarrow.large_string()
        assert left.to_pylist() == expected


def test_lines_of_a_dropped_document_hide_no_others(tmp_path):
    body = " ".join(f"word{number}" for number in range(300))
    alike = f"{body}\nonly the near duplicate has this line"
    parts = [[body], [alike], ["elsewhere\nonly the near duplicate has this line"]]
    assert dedup_corpus.decide(tmp_path, parts, dedup_corpus.section(lines=20, near=True)) == ([0, dedup.NEAR, 0], [])


def test_digests_of_any_shape(tmp_path):
    keys = dedup_corpus.section(exact=True)
    every = ["a", "b", "a"]
    raw = dedup_corpus.digests(every)
    shapes = [raw, np.array(raw, "V16"), pyarrow.array(raw, pyarrow.binary(16)), pyarrow.chunked_array([raw])]
    for number, shape in enumerate(shapes):
        writer = dedup.KeyWriter(tmp_path, number, keys)
        writer.add(pyarrow.array(every), shape)
        writer.finish()
    dedup_corpus.finish(tmp_path, keys, 1 << 20)
    assert dedup_corpus.verdicts(tmp_path, keys, [every] * 4)[0] == [0, 0, 1] + [1] * 9
    with pytest.raises(ValueError, match="digests"):
        dedup.KeyWriter(tmp_path, 5, keys).add(pyarrow.array(["a"]))


def test_digests_that_share_a_half_are_different(tmp_path):
    keys = dedup_corpus.section(exact=True)
    halves = [bytes(8) + bytes([number]) * 8 for number in (1, 2, 1, 2)] + [bytes([1]) * 8 + bytes(8)]
    writer = dedup.KeyWriter(tmp_path, 0, keys)
    writer.add(pyarrow.array(list("abcde")), halves)
    writer.finish()
    dedup_corpus.finish(tmp_path, keys, 1)
    assert dedup_corpus.verdicts(tmp_path, keys, ["abcde"])[0] == [0, 0, 1, 1, 0]
