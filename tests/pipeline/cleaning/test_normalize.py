"""Normalization of a text, and of a column."""

import sys

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts.errors import RequestError
from pipeline.cleaning import column
from pipeline.cleaning.normalize import Normalizer, normalize
from tests.support.pipeline import texts

FORMS = ["NFC", "NFKC", "none"]


@pytest.mark.parametrize(
    ("raw", "form", "expected"),
    [
        ("a\r\nb\rc\n", "NFC", "a\nb\nc"),
        ("\ufeff\n\n  x\x00\x07\x84y\t z \n", "NFC", "  xy\t z"),
        ("a\x0bb\x0cc\x85d\u2028e\u2029f", "NFC", "a\nb\nc\nd\ne\nf"),
        ("a\x1cb\x1dc\x1ed\x1fe", "none", "a\nb\nc\nd e"),
        ("end\n\x0c\ndef\x0c\r\nx\r\x85y\x0b\x0cz", "NFC", "end\n\ndef\nx\ny\nz"),
        ("\x0c\nfirst\nlast\x0c", "NFC", "first\nlast"),
        ("e\u0301", "NFC", "é"),
        ("e\u0301ﬁ", "none", "e\u0301ﬁ"),
        ("ﬁ", "NFKC", "fi"),
        ("a\ud800b", "NFC", "ab"),
        ("x\u3000", "NFC", "x"),
        ("\u1100\u1161", "NFC", "가"),
    ],
)
def test_normalize(raw, form, expected):
    assert normalize(raw, form) == expected


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=())), st.sampled_from(FORMS))
def test_normalizing_twice_changes_nothing_and_utf8_holds_it(text, form):
    once = normalize(text, form)
    once.encode()
    assert normalize(once, form) == once


_AWKWARD = st.text(
    "a \n\r\t\x00\x0b\x0c\x1d\x1f\x84\x85\ufeffe\u0301\u00e9ﬁ\u1100\u1161\u2028\u3000”🎉\u0344\U0002f800", max_size=8
)


@settings(deadline=None)
@given(st.lists(st.one_of(_AWKWARD, texts.texts), max_size=6), st.sampled_from(FORMS))
def test_a_column_is_normalized_like_its_texts(batch, form):
    normalizer = Normalizer(form, False)
    assert normalizer(texts.column(batch)).to_pylist() == [normalize(text, form) for text in batch]
    assert [normalizer.text(text) for text in batch] == [normalize(text, form) for text in batch]


def test_every_line_break_of_python_is_one():
    breaks = [chr(code) for code in range(0x10000) if len(f"a{chr(code)}b".splitlines()) == 2]
    assert len(breaks) == 10
    assert all(normalize(f"a{mark}b", "NFC") == "a\nb" for mark in [*breaks, "\r\n"])


@settings(deadline=None)
@given(_AWKWARD)
def test_words_are_not_joined(text):
    # All white space of Python separates words, including 1C to 1F.
    words = [word.translate(str.maketrans("", "", "\x00\x84\ufeff")) for word in text.split()]
    assert normalize(text, "none").split() == [word for word in words if word]


@pytest.mark.parametrize("form", FORMS)
def test_no_character_is_missed(form):
    every = [f"ka{chr(code)}a" for code in range(0x01, 0x2FA20) if not 0xD800 <= code < 0xE000]
    assert Normalizer(form, False)(texts.column(every)).to_pylist() == [normalize(text, form) for text in every]


def test_slices_and_nulls():
    batch = pyarrow.array(["x", None, "b\r", "c"]).slice(1)
    assert Normalizer("NFC", False)(column.large(batch)).to_pylist() == ["", "b", "c"]


def test_mojibake():
    pytest.importorskip("ftfy")
    batch = texts.column(["schÃ¶n", "plain ascii", "“fine”"])
    wanted = ["schön", "plain ascii", "“fine”"]
    normalizer = Normalizer("NFC", True)
    assert normalizer(batch).to_pylist() == [normalizer.text(text) for text in batch.to_pylist()] == wanted


def test_without_ftfy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(RequestError, match="pip install ftfy"):
        Normalizer("NFC", True)


def test_ordinary_text_is_not_touched():
    batch = texts.column(["An ordinary text with “quotes” — and dashes.\n\n\tYes."] * 3)
    assert Normalizer("NFC", False)(batch) is batch
