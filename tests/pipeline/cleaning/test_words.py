"""Chunks and words of columns."""

import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.cleaning import column, words
from pipeline.cleaning.english_exceptions import exceptions
from pipeline.cleaning.word_splitting import Splitter
from tests.support.pipeline import plain_cleaning, texts

VOCABULARY = words.Vocabulary()


@pytest.mark.parametrize(
    ("chunk", "parts"),
    [
        ("word", "word"),
        ("(word),", "( word ) ,"),
        ("don't", "do n't"),
        ("We’ll", "We ’ll"),
        ("well", "well"),
        ("cannot.", "can not ."),
        ("Mr.", "Mr."),
        ("U.S.", "U.S."),
        ("end.", "end ."),
        ("NATO.", "NATO ."),
        ("end...", "end ..."),
        ("dog's", "dog 's"),
        ("“dog’s.”", "“ dog ’s . ”"),
        ("dont's", "do nt 's"),
        ("(A.", "( A."),
        ("“1,234.5”", "“ 1,234.5 ”"),
        ("1..2", "1 .. 2"),
        ("self-made", "self - made"),
        ("and/or", "and/or"),
        ("his/her", "his / her"),
        ("example.com/a-b", "example.com/a-b"),
        ("http://example.com/a,b", "http://example.com/a,b"),
        ("end.Next", "end . Next"),
        ("10km", "10 km"),
        ("$5.3m", "$ 5.3 m"),
        ("US$5", "US$ 5"),
        ("9a.m.", "9 a.m."),
        ("(yes):", "( yes ):"),
        ("fine:)", "fine :)"),
        ("3-4", "3 - 4"),
        ("a,b", "a , b"),
        ("🎉yes", "🎉 yes"),
    ],
)
def test_splitting(chunk, parts):
    assert Splitter().split(chunk) == parts.split()


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1))
def test_words_of_a_chunk_make_the_chunk(chunk):
    parts = plain_cleaning.SPLITTER.split(chunk)
    assert "".join(parts) == chunk and all(parts)


_MARKS = st.lists(st.sampled_from(".,:;!?()[]'\"“”‘’…_-—$%/"), max_size=3)
_PIECES = ["word", "Words", "NATO", "A", "o", "D", "well", "co", "dont", "Ünder", "ª", "ⅰ", "𝒜", "中", "7", "2.5"]
_PIECES += ["1,000", "٣", "'s", "’s", "'S", "n't", "-", "..", "km"]
_PIECE = st.sampled_from(_PIECES) | st.sampled_from(sorted(exceptions()))


@settings(deadline=None, max_examples=500)
@example([], ["𝒜", "A"], ["."])
@example([], ["A", "𝒜"], ["."])
@given(_MARKS, st.lists(_PIECE, min_size=1, max_size=3), _MARKS)
def test_common_chunks_are_split_like_all_others(before, pieces, behind):
    chunk = "".join([*before, *pieces, *behind])
    at_once = plain_cleaning.SPLITTER._common(chunk)
    if at_once is not None and chunk not in exceptions():
        assert at_once == plain_cleaning.SPLITTER._join(plain_cleaning.SPLITTER._split(chunk))


@pytest.mark.parametrize("piece", [".", "=", "a.", "a:", "1,", "@a", "-", "(a", "x://", "'"])
def test_long_chunks_take_no_time(piece):
    """Inputs that would take hours if the time were quadratic in the length."""
    for size in (4_000, 200_000):
        chunk = piece * (size // len(piece))
        assert "".join(Splitter().split(chunk)) == chunk


def test_the_same_words_as_spacy():
    spacy = pytest.importorskip("spacy")
    tokenizer = spacy.blank("en").tokenizer
    chunks = sorted({chunk for text in texts.openwebtext() for chunk in text.split()})
    for chunk in random.Random(1).sample(chunks, 4_000):
        assert plain_cleaning.SPLITTER.split(chunk) == [token.text for token in tokenizer(chunk)]


@settings(deadline=None)
@given(st.lists(texts.texts, max_size=6))
def test_chunks_are_those_of_str_split(batch):
    seen = column.view(texts.column(batch))
    cut = words.chunks(seen, words.spaces(seen.content))
    content = seen.content.tobytes()
    actual = [content[start:stop].decode() for start, stop in zip(cut.starts, cut.stops, strict=True)]
    for number, text in enumerate(batch):
        assert actual[cut.firsts[number] : cut.firsts[number + 1]] == text.split()


@settings(deadline=None)
@given(st.lists(texts.texts, max_size=6))
def test_words_of_a_column(batch):
    seen = VOCABULARY.words(texts.column(batch))
    every = [word for text in batch for word in plain_cleaning.words(text)]
    assert VOCABULARY.characters[seen.ids].tolist() == [len(word) for word in every]
    assert np.diff(seen.firsts).tolist() == [len(plain_cleaning.words(text)) for text in batch]
    assert len(set(zip(seen.ids.tolist(), every, strict=True))) == len(set(seen.ids.tolist())) == len(set(every))


@settings(deadline=None)
@given(st.lists(texts.texts, max_size=6))
def test_lines_are_those_of_str_split(batch):
    seen = column.view(texts.column(batch))
    spans = column.lines(seen)
    content = seen.content.tobytes()
    actual = [content[start:stop].decode() for start, stop in zip(spans.starts, spans.stops, strict=True)]
    for number, text in enumerate(batch):
        assert actual[spans.firsts[number] : spans.firsts[number + 1]] == text.split("\n")


def test_a_full_vocabulary_starts_over(monkeypatch):
    monkeypatch.setattr(words, "_LIMIT", 2)
    vocabulary = words.Vocabulary()
    for text in ("one two three", "four five six", "one (two)"):
        seen = vocabulary.words(texts.column([text]))
        assert vocabulary.characters[seen.ids].tolist() == [len(word) for word in plain_cleaning.words(text)]


@settings(deadline=None)
@given(st.lists(st.text(max_size=3), max_size=8), st.data())
def test_replacing(batch, data):
    batch = [text.encode("utf-8", "replace").decode() for text in batch]
    indices = sorted(data.draw(st.sets(st.integers(0, max(len(batch) - 1, 0))))) if batch else []
    new = [str(index) * 3 for index in indices]
    wanted = [str(i) * 3 if i in indices else text for i, text in enumerate(batch)]
    assert column.replaced(texts.column(batch), np.array(indices, np.int64), new).to_pylist() == wanted
