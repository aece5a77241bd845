"""Makes the battery's examples. Every function takes a random generator and the number of examples."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.random import Generator

from pipeline.document import Document
from pipeline.examples.pydocs_questions import questions
from tokenizer.base import Tokenizer

#: A line of a task's jsonl file.
Example = dict[str, Any]

_CHOICES = 4
_WORD = re.compile(r"[A-Za-z]{4,}")
_COPIED_WORD = re.compile(r"[a-z]{3,8}")
#: Words in a cloze's passage and in a continuation.
_LEAST_PASSAGE, _MOST_PASSAGE, _CONTINUATION = 8, 60, 8
#: Tokens kept free for a question or an answer after a passage.
_RESERVED = 48
_NAMES = ("Alice", "Bruno", "Clara", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "James", "Karen", "Louis")


class Passages:
    """Pieces of the held-out documents that fit into the context length."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length
        self._words = [text.split() for text in texts]

    @cached_property
    def long(self) -> list[list[str]]:
        """The words of every document that is long enough for a passage and its continuation."""
        return [words for words in self._words if len(words) >= _LEAST_PASSAGE + _CONTINUATION]

    @cached_property
    def vocabulary(self) -> list[str]:
        """Short lowercase words of the documents, sorted."""
        return sorted({word for words in self._words for word in words if _COPIED_WORD.fullmatch(word)})

    def fits(self, text: str) -> bool:
        """Return whether a text fits into the context length, with tokens to spare."""
        return len(self.tokenizer.encode(text)) <= self.context_length - _RESERVED

    def last_words(self, words: Sequence[str], reserved: int) -> str:
        """Join the last of these words that fit into the context length, with ``reserved`` tokens to spare."""
        room = max(1, self.context_length - reserved)
        while True:
            text = " ".join(words)
            length = len(self.tokenizer.encode(text))
            if length <= room or len(words) <= 1:
                return text
            words = words[len(words) - max(1, min(len(words) - 1, len(words) * room // length)) :]


def _distinct(examples: Iterator[Example], key: str, count: int) -> Iterator[Example]:
    """Yield at most ``count`` examples with different values at ``key``, giving up after too many repetitions."""
    seen = set()
    for example in islice(examples, 20 * count):
        if example[key] not in seen:
            seen.add(example[key])
            yield example
        if len(seen) >= count:
            return


def cloze(rng: Generator, count: int, passages: Passages) -> Iterator[Example]:
    """Yield passages and the word that follows."""

    def examples() -> Iterator[Example]:
        while passages.long:
            words = passages.long[rng.integers(len(passages.long))]
            places = [i for i in range(_LEAST_PASSAGE, len(words)) if _WORD.fullmatch(words[i])]
            place = places[rng.integers(len(places))] if places else 0
            context = passages.last_words(words[max(0, place - _MOST_PASSAGE) : place], _RESERVED) if place else ""
            yield {"context": context, "word": words[place]}

    usable = (example for example in islice(examples(), 40 * count) if example["context"])
    return _distinct(usable, "context", count)


def continuation(rng: Generator, count: int, passages: Passages) -> Iterator[Example]:
    """Yield passages, the words that follow, and words from other places of the documents."""

    def words_at(words: list[str], least: int) -> tuple[int, str]:
        place = int(rng.integers(least, len(words) - _CONTINUATION + 1))
        return place, " ".join(words[place : place + _CONTINUATION])

    def examples() -> Iterator[Example]:
        while passages.long:
            words = passages.long[rng.integers(len(passages.long))]
            place, right = words_at(words, _LEAST_PASSAGE)
            others = [words_at(passages.long[rng.integers(len(passages.long))], 0)[1] for _ in range(_CHOICES - 1)]
            context = passages.last_words(words[max(0, place - _MOST_PASSAGE) : place], _RESERVED)
            yield {"context": context, **_shuffled(rng, right, others)}

    usable = (one for one in islice(examples(), 40 * count) if len(set(one["choices"])) == _CHOICES)
    return _distinct(usable, "context", count)


def needle(rng: Generator, count: int, passages: Passages) -> Iterator[Example]:
    """Yield a sentence hidden in text that fills the context, at evenly spread depths, and a question about it."""
    for number in range(count if passages.long else 0):
        order = rng.permutation(len(passages.long))
        haystack: list[str] = []
        for index in order:
            haystack += passages.long[index]
            if len(haystack) >= passages.context_length:
                break
        words = passages.last_words(haystack, 2 * _RESERVED).split()
        name = _NAMES[rng.integers(len(_NAMES))]
        codes = [str(code) for code in rng.choice(np.arange(1000, 10000), _CHOICES, replace=False)]
        depth = number / max(1, count - 1)
        place = round(depth * len(words))
        hidden = f"The code of {name} is {codes[0]}."
        text = " ".join([*words[:place], hidden, *words[place:]])
        yield {
            "context": f"{text}\nThe code of {name} is",
            "depth": round(depth, 3),
            **_shuffled(rng, codes[0], codes[1:]),
        }


def copy(rng: Generator, count: int, passages: Passages) -> Iterator[Example]:
    """Yield lists of words to repeat, after two examples."""
    known = passages.vocabulary

    def examples() -> Iterator[Example]:
        while len(known) >= 3:
            lists = [" ".join(known[i] for i in rng.integers(len(known), size=3)) for _ in range(3)]
            shown = "".join(f"words: {words}\ncopy: {words}\n" for words in lists[:2])
            yield {"context": f"{shown}words: {lists[2]}\ncopy:", "answer": lists[2]}

    return _distinct(examples(), "context", count)


def arithmetic(rng: Generator, count: int) -> Iterator[Example]:
    """Yield additions and subtractions of numbers up to 99, after three solved ones."""

    def problem() -> tuple[str, str]:
        left, right = (int(number) for number in rng.integers(1, 100, size=2))
        if rng.integers(2):
            return f"{left} + {right} =", str(left + right)
        return f"{max(left, right)} - {min(left, right)} =", str(abs(left - right))

    def examples() -> Iterator[Example]:
        while True:
            solved = "".join(f"{question} {answer}\n" for question, answer in (problem() for _ in range(3)))
            question, answer = problem()
            yield {"context": solved + question, "answer": answer}

    return _distinct(examples(), "context", count)


def documentation(
    rng: Generator, count: int, passages: Passages, documents: Callable[[], Sequence[Document]]
) -> Iterator[Example]:
    """Yield questions about functions of Python's standard library, with the answers to other questions."""
    answerable = [one for one in questions(documents(), frozenset(), 0, {}) if passages.fits(one.question + one.answer)]
    for index in rng.permutation(len(answerable))[: count if len(answerable) > _CHOICES else 0]:
        others = [answerable[i].answer for i in rng.choice(len(answerable), _CHOICES, replace=False) if i != index]
        yield {
            "context": f"Question: {answerable[index].question}\nAnswer:",
            **_shuffled(rng, answerable[index].answer, others[: _CHOICES - 1]),
        }


def _shuffled(rng: Generator, right: str, others: Sequence[str]) -> Example:
    choices = [right, *others]
    order = rng.permutation(len(choices))
    return {"choices": [choices[i] for i in order], "answer": int(np.flatnonzero(order == 0)[0])}
