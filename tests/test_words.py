"""The check of words, which `make check` runs: it finds private names and words, and nothing in plain English."""

import runpy
from pathlib import Path

from tests.support.paths import CHECKOUT

WORDS = runpy.run_path(str(CHECKOUT / ".ci" / "words.py"))
SOURCE = '''\
"""Normalise the text."""


def settle(found: int) -> str:
    checkpoint = found
    return "begin anew"
'''


def test_names_and_words_are_reported_with_their_lines() -> None:
    names, patterns = WORDS["read_words"]()
    assert [(line, name) for line, name, _ in WORDS["in_names"](SOURCE, names)] == [(4, "settle"), (4, "found")]
    hits = list(WORDS["in_text"](Path("module.py"), SOURCE, patterns))
    assert [(line, word) for line, word, _ in hits] == [(1, "Normalise"), (6, "anew")]
    assert all(advice for _, _, advice in hits)


def test_documents_are_read_as_a_whole() -> None:
    _, patterns = WORDS["read_words"]()
    text = "# Title\n\nBytes a\nToken stands next to tokens a rank, and is fine per token.\n"
    hits = [(line, word) for line, word, _ in WORDS["in_text"](Path("page.md"), text, patterns)]
    assert hits == [(4, "tokens a rank")]
