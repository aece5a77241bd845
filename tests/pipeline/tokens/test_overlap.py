"""The overlap rule, compared with a plain implementation."""

import re

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ngrams
from pipeline.tokens.overlap import HeldOut

MARKS = "\u00a0¡§«¶·»¿\u3000、。「」『』" + "".join(map(chr, range(0x2000, 0x2070)))
WORD = re.compile(f"(?:(?![{MARKS}])[0-9a-z\x80-\U0010ffff])+")
LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def _plain(text, words):
    words_of_text = WORD.findall(text.translate(LOWER))
    length = min(words, len(words_of_text))
    return (
        {tuple(words_of_text[i : i + length]) for i in range(len(words_of_text) - length + 1)}
        if words_of_text
        else set()
    )


def _column(*groups):
    return pyarrow.chunked_array([pyarrow.array(group, pyarrow.string()) for group in groups], pyarrow.string())


def _measured(held, train, words, groups=2):
    at = len(held) // 2
    compared = HeldOut.of([_column(held[:at]), _column(held[at:])], words)
    for start in range(groups):
        compared.mark(compared.shared(_column(train[start::groups])))
    return compared.overlap().tolist()


def _expected(held, train, words):
    seen = set().union(*(_plain(text, words) for text in train))
    sequences = [_plain(text, words) for text in held]
    return [len(one & seen) / max(len(one), 1) for one in sequences]


few_words = st.lists(
    st.sampled_from(
        ["a", "b", "B", "cd", "é", "9", "!", "\n", "日本", "“a”", "b\u00a0c", "\u2080", "«b»", "。日", "›"]
    ),
    max_size=25,
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(few_words, min_size=1, max_size=6), st.lists(few_words, max_size=8), st.integers(1, 9))
def test_equals_the_definition(held, train, words):
    assert _measured(held, train, words) == pytest.approx(_expected(held, train, words))


def test_neighboring_documents_are_not_joined():
    assert _measured(["b c"], ["a b", "c d"], 2, groups=1) == [0.0]
    assert _measured(["ab"], ["a", "b"], 1, groups=1) == [0.0]


def test_case_and_punctuation_make_no_difference():
    assert _measured(["The cat, sat. On -- the MAT again today!"], ["x the cat sat on the mat again today y"], 8) == [
        1.0
    ]


def test_a_sliced_column():
    column = _column(["zz zz", "a b c", "b c d"]).slice(1)
    hashes, owners = ngrams.sequences(column, 2)
    assert len(hashes) == 4 and owners.tolist() == [0, 0, 1, 1]
    assert hashes[1] == hashes[2]


def test_millions_of_sequences_do_not_collide():
    rng = np.random.default_rng(0)
    text = " ".join(map(str, rng.integers(0, 10**9, 200_000)))
    hashes, _ = ngrams.sequences(_column([text]), 8)
    assert len(np.unique(hashes)) == len(hashes) == 199_993
