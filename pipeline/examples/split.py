"""Choose which chat examples to hold out, so that training examples don't give away the held-out answers.

Tied examples are put on the same side of the split. Two examples are tied if they have

- the same question, ignoring case, spacing and punctuation;
- nearly the same question: they differ in numbers, in word order, or by one word added, removed or changed;
- long questions with many word sequences in common (found by MinHash, as for near-duplicate documents);
- the same answer.

Text that many examples share, such as a question template, a class label or a stock phrase, doesn't tie them. At least
one example of every common answer is always left for training. In a conversation, each assistant message is an answer,
and its question consists of all user messages so far. The split depends on the seed and the examples, but not on the
examples' order.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray

from artefacts.hashing import Hashes, Ints, Mask, keyed_hashes
from configs.schema.clean import NearDuplicatesSection
from pipeline.dedup.minhash import band_keys, sketch
from pipeline.dedup.union_find import flatten, join
from pipeline.examples.reading import KEY
from pipeline.ngrams import sequences

Messages = Sequence[Mapping[str, str]]

#: An answer shared by more examples than this is common, and a question shared by more examples is a template.
_FEW = 10
#: Answers with fewer bytes than this may be class labels, so a lower limit applies to them.
_SHORT_BYTES, _FEW_SHORT = 32, 3
#: Questions with a number of words in this range are also compared with one word left out. Questions with at least
#: ``_LONG`` words are also compared by MinHash.
_LEAST_WORDS, _MOST_WORDS, _LONG = 4, 64, 20
#: Number of questions to sketch at a time.
_BLOCK = 1 << 14

#: Words are as in ``pipeline/ngrams.py``, except that each Chinese or Japanese character is a word.
_MARKS = r"\s\x00-/:-@\[-`{-\xbf\u060c\u061b\u061f\u0964\u0965\u2000-\u206f\u3000-\u303f"
_CJK = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_CJK}]|[^{_MARKS}{_CJK}]+")
_NUMBER = re.compile(r"\d+")


class Split(NamedTuple):
    """A split of examples.

    Attributes:
        held_out: mask of the held-out examples. At least one is held out, and at least one is not.
        warning: explains why far fewer examples are held out than requested, or why tied examples are on both sides.
            None if neither is the case.
    """

    held_out: Mask
    warning: str | None


class _Turns(NamedTuple):
    """The assistant messages of all examples.

    Attributes:
        examples: [turns] index of each message's example.
        questions, answers: [turns] indices into the distinct texts, or -1 if there is no text.
        last: [turns] whether the message is the last one in its example.
        question_texts, answer_texts: the distinct texts, as returned by ``_comparable``.
    """

    examples: Ints
    questions: Ints
    answers: Ints
    last: Mask
    question_texts: list[str]
    answer_texts: list[str]


class _Answers(NamedTuple):
    """Distinct (answer, example) pairs, stored as two parallel arrays."""

    answers: Ints
    examples: Ints


def split(conversations: Sequence[Messages], seed: int, fraction: float, key: str = KEY) -> Split:
    """Split two or more conversations so that about ``fraction`` of them is held out.

    ``key`` is the recipe key of the examples, for messages.
    """
    count = len(conversations)
    target = min(max(round(fraction * count), 1), count - 1)
    # An answer shared by more examples than fit on the held-out side is common too.
    few = min(_FEW, max(target, 2))
    turns = _turns(conversations)
    common, rare = _by_frequency(turns, few)
    same_question = _question_ties(turns, np.arange(len(turns.question_texts)), count, few)
    all_ties = _question_ties(turns, _families(turns.question_texts, few), count, few)
    _tie(all_ties, rare.answers, rare.examples)
    flatten(all_ties)
    hashes = keyed_hashes(
        seed, "held-out", ("\0".join(message["content"] for message in messages) for messages in conversations)
    )
    # The two sides should share nothing. If a side would have no examples, relax this step by step.
    levels = (
        ("", all_ties),
        ("an answer or nearly a question", same_question),
        ("a question", np.arange(count)),
    )
    masks = ((shared, _choose(ties, hashes, target, common)) for shared, ties in levels)
    shared, held_out = next((shared, mask) for shared, mask in masks if mask.any())
    return Split(held_out, _warning(int(held_out.sum()), target, count, shared, key))


def _warning(reached: int, target: int, count: int, shared: str, key: str) -> str | None:
    if shared:
        return (
            f"{key}: too few of the {count:,} examples have a unique question and answer: held-out "
            f"examples ({reached:,}) share {shared} with training examples, so their loss is too optimistic"
        )
    if 2 * reached < target:
        return (
            f"{key}: {reached:,} of {count:,} examples are held out instead of {target:,} "
            "(held_out_fraction), because examples with nearly the same question or the same answer are on the same "
            "side"
        )
    return None


def _turns(conversations: Sequence[Messages]) -> _Turns:
    questions: dict[str, int] = {}
    answers: dict[str, int] = {}
    turns: list[tuple[int, int, int, bool]] = []
    for example, messages in enumerate(conversations):
        question_so_far = ""
        for message in messages:
            text = _comparable(message["content"])
            if message["role"] == "user":
                question_so_far = f"{question_so_far} {text}".strip()
            elif message["role"] == "assistant":
                question = questions.setdefault(question_so_far, len(questions)) if question_so_far else -1
                answer = answers.setdefault(text, len(answers)) if text else -1
                turns.append((example, question, answer, False))
        if turns and turns[-1][0] == example:
            turns[-1] = (*turns[-1][:3], True)
    columns = np.array(turns, np.int64).reshape(-1, 4).T
    return _Turns(columns[0], columns[1], columns[2], columns[3].astype(bool), [*questions], [*answers])


def _comparable(text: str) -> str:
    """Return the normalized text's words, separated by spaces, or everything but spacing if it has no words."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(text)) or " ".join(text.split())


def _by_frequency(turns: _Turns, few: int) -> tuple[_Answers, _Answers]:
    """Return the (answer, example) pairs of common answers and of rare answers."""
    has_answer = turns.answers >= 0
    answers, examples = _distinct(turns.answers[has_answer], turns.examples[has_answer])
    short = np.array([len(text.encode()) < _SHORT_BYTES for text in turns.answer_texts], bool)
    most = np.where(short, min(few, _FEW_SHORT), few)
    is_common = (np.bincount(answers, minlength=len(most)) > most)[answers]
    return _Answers(answers[is_common], examples[is_common]), _Answers(answers[~is_common], examples[~is_common])


def _question_ties(turns: _Turns, families: Ints, count: int, few: int) -> Ints:
    """Tie examples whose questions are in the same family, and return the root of each example.

    Conversations whose last questions are in the same family are always tied. An earlier question ties conversations
    only if few of them contain it, so a common greeting at the start does not tie them.
    """
    parent = np.arange(count)
    has_question = turns.questions >= 0
    keys, examples, last = (
        families[turns.questions[has_question]],
        turns.examples[has_question],
        turns.last[has_question],
    )
    _tie(parent, keys[last], examples[last])
    _tie(parent, keys, examples, few)
    flatten(parent)
    return parent


def _families(questions: list[str], few: int) -> Ints:
    """Return, for each question, the index of the first question in its family of similar questions.

    A question whose family has more than ``few`` members, such as a template, is a family of its own.
    """
    parent = np.arange(len(questions))
    texts = pyarrow.array([_NUMBER.sub("0", question) for question in questions], pyarrow.large_string())
    hashes, owners = sequences(pyarrow.chunked_array([texts]), 1)
    words = np.bincount(owners, minlength=len(questions))
    # A sum of hashes does not depend on word order. Subtracting one hash gives the sum for the question without that
    # word.
    totals = np.zeros(len(questions), np.uint64)
    np.add.at(totals, owners, hashes)
    named = np.flatnonzero(words)
    fit = ((words >= _LEAST_WORDS) & (words <= _MOST_WORDS))[owners]
    keys = np.concatenate([totals[named], totals[owners[fit]] - hashes[fit]])
    _tie(parent, keys, np.concatenate([named, owners[fit]]), few)
    _tie(parent, *_bands(texts, np.flatnonzero(words >= _LONG)), few)
    flatten(parent)
    is_template = np.bincount(parent, minlength=len(parent))[parent] > few
    return np.where(is_template, np.arange(len(parent)), parent)


def _bands(texts: pyarrow.LargeStringArray, chosen: Ints) -> tuple[Hashes, Ints]:
    """Return the MinHash keys of the chosen texts, and the index of each key's text."""
    near = NearDuplicatesSection()
    keys = [np.zeros(0, np.uint64)]
    for start in range(0, len(chosen), _BLOCK):
        block = texts.take(pyarrow.array(chosen[start : start + _BLOCK]))
        shingles, owners = sequences(pyarrow.chunked_array([block]), near.words)
        sketches = sketch(shingles, owners, len(block), near.bands * near.rows)
        keys.append(band_keys(sketches, near.bands, near.rows).reshape(-1))
    return np.concatenate(keys), np.repeat(chosen, near.bands)


def _distinct(keys: NDArray[np.generic], members: Ints) -> tuple[NDArray[np.generic], Ints]:
    """Return the distinct (key, member) pairs, sorted by key."""
    order = np.lexsort((members, keys))
    keys, members = keys[order], members[order]
    is_new = np.ones(len(keys), bool)
    is_new[1:] = (keys[1:] != keys[:-1]) | (members[1:] != members[:-1])
    return keys[is_new], members[is_new]


def _tie(parent: Ints, keys: NDArray[np.generic], members: Ints, most: int | None = None) -> None:
    """Tie the members of each key to each other, in place. Keys with more than ``most`` members are skipped."""
    keys, members = _distinct(keys, members)
    same = keys[1:] == keys[:-1]
    if most is not None:
        starts = np.flatnonzero(np.concatenate([[True], ~same]))
        counts = np.diff(np.append(starts, len(keys)))
        same &= np.repeat(counts <= most, counts)[1:]
    join(parent, members[1:][same], members[:-1][same])


def _choose(ties: Ints, hashes: Hashes, target: int, common: _Answers) -> Mask:
    """Hold out groups of tied examples, ordered by their smallest hash, up to ``target`` examples in total.

    A group is skipped if holding it out would leave no training example for a common answer. If no group fits, the
    smallest group is tried again with a limit of ``2 * target`` examples. If that fails too, the mask is all False.
    """
    _, group, sizes = np.unique(ties, return_inverse=True, return_counts=True)
    least = np.full(len(sizes), ~np.uint64(0))
    np.minimum.at(least, group, hashes)
    owners = group[common.examples]
    order = np.argsort(owners, kind="stable")
    answers, ends = common.answers[order], np.searchsorted(owners[order], np.arange(len(sizes) + 1))
    left = Counter(common.answers.tolist())
    chosen: list[int] = []
    room = target

    def hold_out(number: int, most: int) -> int:
        """Hold out a group and return its size, or return 0 if it cannot be held out.

        A group with more than ``most`` examples, or with all remaining examples of a common answer, cannot be held out.
        """
        in_group = Counter(answers[ends[number] : ends[number + 1]].tolist())
        if sizes[number] > most or any(left[answer] <= count for answer, count in in_group.items()):
            return 0
        left.subtract(in_group)
        chosen.append(number)
        return int(sizes[number])

    for number in np.argsort(least, kind="stable").tolist():
        if sizes[number] <= room:
            room -= hold_out(number, room)
        if not room:
            break
    if not chosen:
        hold_out(int(np.lexsort((least, sizes))[0]), min(2 * target, len(ties) - 1))
    return np.isin(group, chosen)
