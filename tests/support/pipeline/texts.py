"""Random texts that resemble writing, and real ones."""

import io
import json

import pyarrow
import pytest
import zstandard
from hypothesis import strategies as st

from tests.support.paths import SHARED_DATA

_PIECES = """
the of and that be to have with word Word U.S. Mr. don't it's well-known e.g. example.com 3.14 1,000 $5 #tag ... …
- • ( ) " ' , . ! ? ; : :) [1] [edit] {x} javascript naïve “quoted” — 日本語 ελληνικά 🎉 e\u0301
"""
_GAPS = st.sampled_from([" ", " ", " ", " ", "\n", "\n\n", "\n \n", "\t", "  ", "\u00a0", "\u3000", "\u2028", ""])
_phrases = st.lists(st.tuples(st.sampled_from(_PIECES.split()), _GAPS), max_size=12).map(
    lambda pairs: "".join(piece + gap for piece, gap in pairs)
)
#: Phrases that are repeated in a text.
_written = st.lists(_phrases, min_size=1, max_size=4).flatmap(
    lambda parts: st.lists(st.sampled_from(parts), max_size=8).map("".join)
)
_any = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
#: Empty texts, spaces and newlines only, any characters, and phrases.
texts = st.one_of(st.just(""), st.text(" \n\t\u00a0\u2003", max_size=6), _any, _written)


def column(values):
    return pyarrow.array(list(values), pyarrow.large_string())


def openwebtext():
    """The 500 documents of the shared sample. Skips the test if they are missing."""
    path = SHARED_DATA / "openwebtext-500.jsonl.zst"
    if not path.exists():
        pytest.skip("no shared sample of OpenWebText")
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), "utf-8")
        return [json.loads(line)["text"] for line in lines]
