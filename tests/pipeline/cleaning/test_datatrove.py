"""Decisions on the 500 real documents are those of datatrove's filters, with its default English tokenizer (spaCy's).

No document differs. datatrove counts C4's sentences by spaCy's rule-based sentencizer, which needs no download either.
Not by these documents but known: datatrove compares n-grams with their words run together and takes U+2028 for a
newline; words in an alphabet that spaCy's lists leave out are split at hyphens and slashes here only.
"""

import numpy as np
import pyarrow
import pytest

from configs.schema.clean import C4Section, GopherQualitySection, GopherRepetitionSection
from pipeline.cleaning import c4, gopher_quality, gopher_repetition, pii
from pipeline.cleaning.normalize import normalize
from pipeline.cleaning.words import SYMBOLS, Vocabulary
from tests.support.pipeline import texts

pytest.importorskip("datatrove")
pytest.importorskip("spacy")


@pytest.fixture(
    scope="module", params=[pytest.param(8, id="sample"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
def documents(request):
    """Return the normalized texts: all, or every eighth."""
    return [normalize(text, "NFC") for text in texts.openwebtext()[:: request.param]]


def _kept(faults):
    return (~np.any([fault.mask for fault in faults], axis=0)).tolist()


def _filtered(rule, batch):
    """Return whether datatrove's filter keeps each text, and the text afterwards."""
    from datatrove.data import Document

    documents = [Document(text=text, id=str(number)) for number, text in enumerate(batch)]
    return [rule.filter(document) is True for document in documents], [document.text for document in documents]


def test_gopher(documents):
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    whole, vocabulary = pyarrow.array(documents, pyarrow.large_string()), Vocabulary()
    words = vocabulary.words(whole)
    quality = gopher_quality.faults(whole, words, vocabulary, GopherQualitySection())
    repetition = gopher_repetition.faults(whole, words, vocabulary, GopherRepetitionSection())
    quality_filter, repetition_filter = GopherQualityFilter(), GopherRepetitionFilter()
    # One document after the other: datatrove then splits it once for both.
    theirs = [_filtered(quality_filter, [text])[0] + _filtered(repetition_filter, [text])[0] for text in documents]
    assert _kept(quality) == [by_quality for by_quality, _ in theirs]
    assert _kept(repetition) == [by_repetition for _, by_repetition in theirs]


def test_symbols():
    from datatrove.utils.text import PUNCTUATION_SET

    assert SYMBOLS <= PUNCTUATION_SET
    # What is left is control characters, which no cleaned text has, and marks of scripts that are not Latin.
    assert not {mark for mark in PUNCTUATION_SET - SYMBOLS if mark.isprintable() and mark < "\u0500"}


def test_c4(documents):
    from datatrove.pipeline.filters import C4QualityFilter

    judged = c4.judge(pyarrow.array(documents, pyarrow.large_string()), C4Section(), Vocabulary())
    kept, edited = _filtered(C4QualityFilter(), documents)
    assert _kept(judged.faults) == kept
    ours = judged.texts.to_pylist()
    assert [text for text, good in zip(ours, kept, strict=True) if good] == [
        text for text, good in zip(edited, kept, strict=True) if good
    ]


def test_personal_data(documents):
    from datatrove.pipeline.formatters import PIIFormatter

    masked = pii.mask(pyarrow.array(documents, pyarrow.large_string()), ["email", "ip"]).texts.to_pylist()
    formatter = PIIFormatter(email_replacement="email@example.com", ip_replacement="192.0.2.1")
    assert masked == [formatter.format(text) for text in documents]
