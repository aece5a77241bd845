"""The columnar rules of C4 and Gopher agree with plain implementations, for any texts and thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.clean import C4Section, GopherQualitySection, GopherRepetitionSection
from pipeline.cleaning import c4, gopher_quality, gopher_repetition
from pipeline.cleaning.words import Vocabulary
from tests.support.pipeline import plain_cleaning
from tests.support.pipeline.texts import column, texts

VOCABULARY = Vocabulary()
SHARES = st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0])
QUALITY = st.builds(
    GopherQualitySection,
    min_words=st.integers(0, 20),
    max_words=st.integers(1, 40),
    min_mean_word_length=st.floats(0, 5),
    max_mean_word_length=st.floats(1, 10),
    max_symbol_word_ratio=SHARES,
    max_bullet_lines=SHARES,
    max_ellipsis_lines=SHARES,
    min_alphabetic_words=SHARES,
    min_stop_words=st.integers(0, 8),
)
REPETITION = st.builds(
    GopherRepetitionSection,
    duplicate_lines=SHARES,
    duplicate_paragraphs=SHARES,
    duplicate_line_chars=SHARES,
    duplicate_paragraph_chars=SHARES,
    top_ngram_chars=st.dictionaries(st.integers(1, 5), SHARES, max_size=3),
    duplicate_ngram_chars=st.dictionaries(st.integers(1, 8), SHARES, max_size=4),
)
C4 = st.builds(
    C4Section,
    require_end_mark=st.booleans(),
    min_words_per_line=st.integers(0, 4),
    max_word_length=st.sampled_from([0, 3, 8, 1000]),
    remove_citations=st.booleans(),
    remove_javascript=st.booleans(),
    remove_policy=st.booleans(),
    drop_lorem_ipsum=st.booleans(),
    drop_curly_bracket=st.booleans(),
    min_sentences=st.integers(0, 4),
)


def _normal(text):
    """Strip surrounding newlines, as texts reach the rules without them."""
    return text.strip("\n")


@settings(deadline=None)
@given(st.lists(texts, max_size=5), QUALITY)
def test_quality(batch, section):
    whole = column(batch)
    actual = [
        fault.mask.tolist() for fault in gopher_quality.faults(whole, VOCABULARY.words(whole), VOCABULARY, section)
    ]
    assert [list(row) for row in zip(*actual, strict=True)] == [plain_cleaning.quality(text, section) for text in batch]


@settings(deadline=None, max_examples=200)
@given(st.lists(texts.map(_normal), max_size=5), REPETITION)
def test_repetition(batch, section):
    whole = column(batch)
    faults = gopher_repetition.faults(whole, VOCABULARY.words(whole), VOCABULARY, section)
    actual = [fault.mask.tolist() for fault in faults]
    assert [list(row) for row in zip(*actual, strict=True)] == [
        plain_cleaning.repetition(text, section) for text in batch
    ]


@settings(deadline=None)
@given(st.lists(texts, max_size=5), C4)
def test_c4(batch, section):
    judged = c4.judge(column(batch), section, VOCABULARY)
    dropped = np.any([np.zeros(len(batch), bool), *(fault.mask for fault in judged.faults)], axis=0)
    for text, edited, is_dropped in zip(batch, judged.texts.to_pylist(), dropped.tolist(), strict=True):
        wanted = plain_cleaning.c4(text, section)
        assert is_dropped == (wanted is None)
        assert edited == (text if wanted is None else wanted)


def test_published_thresholds():
    """Rae et al. 2021, table A1 and appendix A.1.1; Raffel et al. 2020, section 2.2."""
    quality, repetition = GopherQualitySection(), GopherRepetitionSection()
    assert (quality.min_words, quality.max_words) == (50, 100_000)
    assert (quality.min_mean_word_length, quality.max_mean_word_length) == (3, 10)
    assert (quality.max_symbol_word_ratio, quality.max_bullet_lines, quality.max_ellipsis_lines) == (0.1, 0.9, 0.3)
    assert (quality.min_alphabetic_words, quality.min_stop_words) == (0.8, 2)
    assert (repetition.duplicate_lines, repetition.duplicate_paragraphs) == (0.3, 0.3)
    assert (repetition.duplicate_line_chars, repetition.duplicate_paragraph_chars) == (0.2, 0.2)
    assert repetition.top_ngram_chars == {2: 0.2, 3: 0.18, 4: 0.16}
    assert repetition.duplicate_ngram_chars == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}
    assert (C4Section().min_words_per_line, C4Section().min_sentences) == (3, 5)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("the of and", "min_words"),
        ("# " * 50 + "the end of it. " * 50, "max_symbol_word_ratio"),
        ("to the be of and that have with. " * 10, "top_ngram_chars"),
        ("\n".join(["- the word of it", "• and to that"] * 50), "max_bullet_lines"),
    ],
)
def test_reasons_name_the_key(text, reason):
    whole = column([text])
    words = VOCABULARY.words(whole)
    faults = gopher_quality.faults(whole, words, VOCABULARY, GopherQualitySection())
    faults += gopher_repetition.faults(whole, words, VOCABULARY, GopherRepetitionSection())
    assert reason in " ".join(fault.reason for fault in faults if fault.mask[0])
