"""Questions about documented functions. The answer is the docstring's first sentence."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from artefacts.hashing import keyed_hashes
from pipeline.document import Document

_TEMPLATES = (
    "What does the {what} {name} do?",
    "What is the {what} {name} for?",
    "Explain the {what} {name} in one sentence.",
    "Describe {name} briefly.",
)

PRIVATE = "with a private name"
NO_SENTENCE = "without a sentence to answer with"
REPEATED = "with the same answer as another function"
HELD_OUT = "from documents held out from pretraining"

_SENTENCE = re.compile(r"^(.+?[.!])(?:\s|$)", re.DOTALL)
_MARKUP = re.compile(r":\w+:`[~!]?([^`]+)`|``([^`]+)``")
_UNFIT = re.compile(
    r"\b(?:todo|fixme|deprecated|see (?:also|the|base)|same as|alias for)\b|>>>|https?://|[{}\\|]", re.IGNORECASE
)
_LEAST_CHARS, _MOST_CHARS, _LEAST_WORDS = 20, 240, 4


class Question(NamedTuple):
    """A question, its answer, and the id of the source document."""

    question: str
    answer: str
    source: str


def answer(text: str) -> str | None:
    """Return the first sentence of a function's docstring, on one line, or None if it is not a suitable answer."""
    paragraph = text.partition("\n\n")[2].split("\n\n", 1)[0]
    flat = " ".join(_MARKUP.sub(lambda match: match[1] or match[2], paragraph).split())
    first = _SENTENCE.match(flat)
    sentence = first[1] if first else ""
    fit = (
        _LEAST_CHARS <= len(sentence) <= _MOST_CHARS
        and len(sentence.split()) >= _LEAST_WORDS
        and sentence.isascii()
        and sentence[0].isupper()
        and sentence.count("(") == sentence.count(")")
        and sentence.count("`") % 2 == 0
        and not sentence.endswith(("e.g.", "i.e.", "etc.", "vs."))
        and not _UNFIT.search(sentence)
    )
    return sentence if fit else None


def questions(
    documents: Iterable[Document], held_out: frozenset[str], seed: int, dropped: dict[str, int]
) -> Iterator[Question]:
    """Yield a question for each public function with a suitable answer, unless its document is in ``held_out``.

    Functions with the same answer as a held-out document are skipped too. If several functions have the same answer,
    only the first one gets a question. Skipped functions are counted by reason in ``dropped``.
    """
    functions = [document for document in documents if document.kind == "function"]
    secret = {answer(document.text) for document in functions if document.id in held_out} - {None}
    choices = keyed_hashes(seed, "question", [document.id for document in functions]) % np.uint64(len(_TEMPLATES))
    known: set[str] = set()
    for document, choice in zip(functions, choices, strict=True):
        name = document.id.removeprefix("pydocs:").partition("#")[0]
        sentence = answer(document.text)
        reason = None
        if any(part.startswith("_") for part in name.split(".")):
            reason = PRIVATE
        elif document.id in held_out or sentence in secret:
            reason = HELD_OUT
        elif sentence is None:
            reason = NO_SENTENCE
        elif sentence.casefold() in known:
            reason = REPEATED
        if reason or sentence is None:
            dropped[str(reason)] = dropped.get(str(reason), 0) + 1
            continue
        known.add(sentence.casefold())
        what = "method" if name.split(".")[-2][:1].isupper() else "function"
        yield Question(_TEMPLATES[int(choice)].format(what=what, name=name), sentence, document.id)
