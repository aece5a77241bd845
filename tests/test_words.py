"""The word check that `make check` runs finds listed words in names and text, and accepts plain English."""

import runpy
from pathlib import Path

import pytest

from tests.support.paths import CHECKOUT

SCRIPT = runpy.run_path(str(CHECKOUT / ".ci" / "words.py"))
WORDS = SCRIPT["read_words"]()
SOURCE = '''\
"""Normalise the text."""


def settle(found: int) -> str:
    checkpoint = found
    return "begin anew"
'''


def names_in(source: str) -> list[str]:
    return [name for _, name, _ in SCRIPT["in_names"](source, WORDS)]


def test_names_and_words_are_reported_with_their_lines() -> None:
    assert [(line, name) for line, name, _ in SCRIPT["in_names"](SOURCE, WORDS)] == [(4, "settle"), (4, "found")]
    hits = list(SCRIPT["in_text"](Path("module.py"), SOURCE, WORDS))
    assert [(line, word) for line, word, _ in hits] == [(1, "Normalise"), (6, "anew")]
    assert all(advice for _, _, advice in hits)


def test_matches_may_span_lines_in_documents() -> None:
    text = "# Title\n\nBytes a\nToken stands next to tokens a rank, and is fine per token.\n"
    hits = [(line, word) for line, word, _ in SCRIPT["in_text"](Path("page.md"), text, WORDS)]
    assert hits == [(4, "tokens a rank")]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("_MADE_FROM", ("made", "from")),
        ("MadeFrom", ("made", "from")),
        ("FSDPModel2", ("fsdp", "model", "2")),
        ("x_BTD", ("x", "btd")),
        ("_", ()),
    ],
)
def test_names_are_split_at_underscores_and_capitals(name: str, parts: tuple[str, ...]) -> None:
    assert SCRIPT["split"](name) == parts


@pytest.mark.parametrize(
    "name",
    [
        *("_tell_first_batch", "_MADE_FROM", "MadeFrom", "has_given_up", "test_it_goes_on", "own_clip"),
        *("test_a_full_vocabulary_begins_anew", "colours", "learnt_rows", "favouriteExperts", "tokens_a_second"),
        *("own", "_own", "everything", "Decision", "WHOLE", "Places", "LEFT", "stop_at", "balance_step", "telling"),
        *("turn", "leave", "seen_BT", "there_M", "labelled_rows", "CancelledJob", "serialisedRows"),
    ],
)
def test_listed_names_and_parts_of_names_are_reported(name: str) -> None:
    assert names_in(f"{name} = 1") == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("each_row", "called_with", "is_there", "longest_word", "remember_me", "owner", "own_loss", "madeira"),
        *("free_bytes", "TensorBoardWriter", "left", "whole", "decision", "PLACES", "_stop_at_mark", "everything_else"),
        *("end_of_turn", "Memory", "memory", "unsupervised", "denoising", "is_raised"),
    ],
)
def test_other_names_are_accepted(name: str) -> None:
    assert names_in(f"{name} = 1") == []


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    pass\nexcept OSError as found:\n    pass",
        "import json as found",
        "from json import loads as found",
        "with open(0) as found:\n    pass",
        "for found in ():\n    pass",
        "if found := 1:\n    pass",
        "match 1:\n    case found:\n        pass",
        "match 1:\n    case [*found]:\n        pass",
        "match 1:\n    case {**found}:\n        pass",
        "match 1:\n    case int() as found:\n        pass",
        "def f(*, found=1): pass",
        "def f(*found): pass",
        "def f(**found): pass",
        "f = lambda found: 1",
        "async def found(): pass",
        "class found: pass",
        "self.found = 1",
        "found: int",
    ],
)
def test_every_kind_of_definition_is_checked(source: str) -> None:
    assert names_in(source) == ["found"]


def test_uses_of_a_name_are_not_reported() -> None:
    assert names_in("print(found, self.found, f(found=1))\nimport json\nfrom json import loads") == []


def test_text_patterns_match_british_spellings_in_every_form() -> None:
    text = "Colours, favourite, neighbouring, learnt and an encyclopaedia; color and encyclopedia. It tells them apart."
    hits = [word for _, word, _ in SCRIPT["in_text"](Path("page.md"), text, WORDS)]
    assert hits == ["Colours", "favourite", "neighbouring", "learnt", "encyclopaedia", "tells them apart"]


def test_british_endings_are_reported_and_similar_words_are_not() -> None:
    british = "unserialised penalising tokenisation optimise Cancelled labelling modelled traveller signalled warm-up"
    american = "serialized penalizing tokenization optimize canceled labeling modeled traveler signaled warmup"
    others = "CANCELLED cancellation raised rising promising supervised revised exercised controlled rolling compromise"
    hits = [word for _, word, _ in SCRIPT["in_text"](Path("page.md"), f"{british} {american} {others}", WORDS)]
    assert sorted(hits) == sorted(british.split())
