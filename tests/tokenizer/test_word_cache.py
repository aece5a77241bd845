"""Ids from the word cache are those of SentencePiece on the complete text, for any texts and chunks."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.paths import SHARED_DATA
from tests.support.pipeline.corpora import texts
from tokenizer import special_tokens, word_cache
from tokenizer.base import writable
from tokenizer.word_cache import WordCache, word_joins

_PARTS = [
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\t",
    "\x00",
    "\u2581",
    "■",
    "‖",
    "é",
    "’",
    "“",
    "—",
    "日本",
    "語",
    "👩‍👧",
    "\ufffd",
]
_PARTS += [
    "a",
    "Wort",
    "don’t",
    "x_1",
    "007",
    "(",
    ")),",
    "\r\n",
    "\u2585",
    "<0x41>",
    "\u00a0",
    "s",
    *special_tokens.RESERVED,
]
_MIXED = st.lists(st.sampled_from(_PARTS), max_size=30).map("".join)
_ANY = st.one_of(st.text(), st.text(alphabet=st.characters(codec=None)), _MIXED)


@pytest.fixture(scope="session", params=["tokenizer", "many_scripts"])
def encoder(request):
    return request.getfixturevalue(request.param)


def expected(tokenizer, documents, end=True):
    return [tokenizer.encode(text) + [tokenizer.end_of_text_id] * end for text in documents]


def split(encoded):
    ids, lengths = encoded
    assert ids.dtype == lengths.dtype == np.int32 and lengths.sum() == len(ids)
    return [ids[first:last].tolist() for first, last in pairwise([0, *np.cumsum(lengths).tolist()])]


def cached(tokenizer, limit):
    """A cache with another limit."""
    usual = WordCache.of(tokenizer._pieces, tokenizer._space_mark)
    if usual is None:
        pytest.skip("no C compiler")
    return WordCache(usual._library, tokenizer._pieces, word_joins(tokenizer._pieces), tokenizer._space_mark, limit)


@settings(max_examples=200, deadline=None)
@given(st.lists(_ANY, max_size=6))
@example(["", "\n", "\u2581", "a\u2581 \u2581\n\u2581\u2581b", "\xe2\x96"])
@example([" " * 300 + "\n" * 300 + " " * 15 + "x", "\x00", "\x00\x00a", "a\x00", "a"])
@example(["x" * n for n in (7, 8, 9, 15, 16, 17, 255, 256, 257)])
@example(["é" * n for n in (8, 9, 127, 128, 129)])
def test_same_ids_for_any_text(encoder, documents):
    column = pyarrow.array([writable(text) for text in documents], pyarrow.large_string())
    assert split(encoder.encode_column(column)) == expected(encoder, documents)
    assert split(encoder.encode_column(column, end=False)) == expected(encoder, documents, end=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(_MIXED, max_size=12), st.randoms(use_true_random=False), st.booleans())
def test_any_chunks_and_slices(many_scripts, documents, random, large):
    kind = pyarrow.large_string() if large else pyarrow.string()
    padded = pyarrow.array(["before \u2581", *documents, "behind"], kind)
    cuts = sorted(random.randint(0, len(documents)) for _ in range(random.randint(0, 4)))
    pieces = [padded.slice(1 + a, b - a) for a, b in pairwise([0, *cuts, len(documents)])]
    column = pyarrow.chunked_array(pieces, kind)
    assert split(many_scripts.encode_column(column)) == expected(many_scripts, documents)


def test_scans_and_lines_of_any_size(many_scripts, monkeypatch):
    documents = [f"{text} {number} “é{number}”\n" for number, text in enumerate(texts(20))]
    for size in (1, 40, 3000):
        monkeypatch.setattr(word_cache, "_SCAN_BYTES", size)
        monkeypatch.setattr(word_cache, "_LINE_BYTES", size)
        cache = cached(many_scripts, word_cache.LIMIT)
        assert split(cache.encode(pyarrow.array(documents), 2)) == expected(many_scripts, documents)


@pytest.mark.parametrize("limit", [0, 40_000, 100_000])
def test_a_full_cache_encodes_without_storing(encoder, limit):
    cache = cached(encoder, limit)
    documents = [f"{text} {'w' * (number % 40)}{number} \u2581" for number, text in enumerate(texts(60))]
    for _ in range(2):
        assert split(cache.encode(pyarrow.array(documents), 2)) == expected(encoder, documents)
        # The first table exists with any limit.
        assert cache.size <= max(limit, 32 << 10)
    assert limit == 0 or cache.size > limit // 2


@pytest.mark.parametrize("part", ["a", "é", "日本", "ab1", " ", "\n", "\u2581", "-", "\x00"])
def test_hundreds_of_kilobytes_of_one_string(encoder, part):
    document = part * (200_000 // len(part.encode()))
    assert split(encoder.encode_column(pyarrow.array([document, "a"]))) == expected(encoder, [document, "a"])


def test_megabytes_without_a_space(tokenizer):
    document = "".join(texts(2000)).replace(" ", "").replace("\n", "")
    assert len(document) > 1_000_000 and " " not in document
    assert split(tokenizer.encode_column(pyarrow.array([document]))) == expected(tokenizer, [document])


def test_naughty_strings(encoder):
    path = SHARED_DATA / "naughty-strings.txt"
    if not path.exists():
        pytest.skip("no naughty-strings.txt next to the checkout")
    text = path.read_text(encoding="utf-8")
    documents = [text, *text.split("\n")]
    assert split(encoder.encode_column(pyarrow.array(documents))) == expected(encoder, documents)


def test_nothing_to_encode(tokenizer):
    for column in (pyarrow.array([], pyarrow.string()), pyarrow.chunked_array([], pyarrow.large_string())):
        ids, lengths = tokenizer.encode_column(column)
        assert len(ids) == len(lengths) == 0 and ids.dtype == lengths.dtype == np.int32
    assert split(tokenizer.encode_column(pyarrow.array(["", ""]))) == [[tokenizer.end_of_text_id]] * 2


def test_encoding_works_after_an_interruption(tokenizer, monkeypatch):
    cache = cached(tokenizer, word_cache.LIMIT)
    documents = texts(10)

    def interrupted(wanted):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "_encode_words", interrupted)
        cache.encode(pyarrow.array(documents), None)
    assert split(cache.encode(pyarrow.array(documents), None)) == expected(tokenizer, documents, end=False)


def test_threads_take_turns(tokenizer):
    corpora = [texts(15, seed=seed) for seed in range(8)]
    cache = cached(tokenizer, word_cache.LIMIT)
    with ThreadPoolExecutor(4) as threads:
        actual = list(threads.map(lambda corpus: split(cache.encode(pyarrow.array(corpus), None)), corpora))
    assert actual == [expected(tokenizer, corpus, end=False) for corpus in corpora]


class _Vocabulary:
    """The part of a SentencePieceProcessor that ``word_joins`` uses."""

    IsControl = IsUnknown = IsByte = staticmethod(lambda token: False)

    def __init__(self, pieces, newline=True, change=str):
        self._pieces, self._newline, self._change = ["\n", *pieces], newline, change

    def PieceToId(self, piece):
        return self._pieces.index(piece)

    def IdToPiece(self, token):
        return self._pieces[token]

    def GetPieceSize(self):
        return len(self._pieces)

    def EncodeAsIds(self, text):
        return ([0] if self._newline else [5, 6]) if text == "\n" else text

    def DecodeIds(self, ids):
        return self._change(ids)


def test_joining_kinds_follow_from_the_vocabulary():
    letter, digit, space, _, other, quote, wide = (1 << kind for kind in range(7))
    joins = word_joins(_Vocabulary(["▁a", "ab", "▁▁", "a1", "é’", "n’t", ")("]))
    assert list(joins) == [letter | digit | quote, 0, letter | space, 0, other, letter, quote, 0]
    assert wide


def test_vocabularies_that_allow_no_words():
    assert word_joins(_Vocabulary(["a"])) is not None
    assert word_joins(_Vocabulary(["a", "a\n"])) is None
    assert word_joins(_Vocabulary(["a"], newline=False)) is None
    assert word_joins(_Vocabulary(["a"], change=str.strip)) is None


def test_pieces_that_join_any_characters_prevent_splitting(tokenizer):
    """If a piece has a letter before a space, the two stay together, and the ids still equal SentencePiece's."""
    usual = cached(tokenizer, word_cache.LIMIT)
    all_joins = bytes([*(0b1110111 for _ in range(3)), 0, *(0b1110111 for _ in range(3)), 0])
    cache = WordCache(usual._library, tokenizer._pieces, all_joins, tokenizer._space_mark)
    documents = [*texts(5), "a\u2581b 1’é\n x"]
    assert split(cache.encode(pyarrow.array(documents), 2)) == expected(tokenizer, documents)
