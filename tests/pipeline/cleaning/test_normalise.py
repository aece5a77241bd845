"""Normalisation of a text, and that of a column is the same."""

import sys

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import RequestError
from pipeline.cleaning import column
from pipeline.cleaning.normalise import Normaliser, normalise
from tests.pipeline.cleaning import texts

FORMS = ["NFC", "NFKC", "none"]


@pytest.mark.parametrize(
    ("raw", "form", "said"),
    [
        ("a\r\nb\rc\n", "NFC", "a\nb\nc"),
        ("\ufeff\n\n  x\x00\x07\x85y\t z \n", "NFC", "  xy\t z"),
        ("e\u0301", "NFC", "é"),
        ("e\u0301ﬁ", "none", "e\u0301ﬁ"),
        ("ﬁ", "NFKC", "fi"),
        ("a\ud800b", "NFC", "ab"),
        ("x\u3000", "NFC", "x"),
        ("\u1100\u1161", "NFC", "가"),
    ],
)
def test_normalise(raw, form, said):
    assert normalise(raw, form) == said


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=())), st.sampled_from(FORMS))
def test_normalising_twice_changes_nothing_and_utf8_holds_it(text, form):
    once = normalise(text, form)
    once.encode()
    assert normalise(once, form) == once


_AWKWARD = st.text("a \n\r\t\x00\x0b\x85\ufeffe\u0301\u00e9ﬁ\u1100\u1161\u2028\u3000”🎉\u0344\U0002f800", max_size=8)


@settings(deadline=None)
@given(st.lists(st.one_of(_AWKWARD, texts.texts), max_size=6), st.sampled_from(FORMS))
def test_a_column_is_normalised_as_its_texts_are(made, form):
    assert Normaliser(form, False)(texts.column(made)).to_pylist() == [normalise(text, form) for text in made]


@pytest.mark.parametrize("form", FORMS)
def test_no_character_is_missed(form):
    every = [f"ka{chr(code)}a" for code in range(0x80, 0x2FA20) if not 0xD800 <= code < 0xE000]
    assert Normaliser(form, False)(texts.column(every)).to_pylist() == [normalise(text, form) for text in every]


def test_slices_and_nulls():
    made = pyarrow.array(["x", None, "b\r", "c"]).slice(1)
    assert Normaliser("NFC", False)(column.large(made)).to_pylist() == ["", "b", "c"]


def test_mojibake():
    pytest.importorskip("ftfy")
    made = texts.column(["schÃ¶n", "plain ascii", "“fine”"])
    assert Normaliser("NFC", True)(made).to_pylist() == ["schön", "plain ascii", "“fine”"]


def test_without_ftfy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(RequestError, match="pip install ftfy"):
        Normaliser("NFC", True)


def test_ordinary_text_is_not_touched():
    made = texts.column(["An ordinary text with “quotes” — and dashes.\n\n\tYes."] * 3)
    assert Normaliser("NFC", False)(made) is made
