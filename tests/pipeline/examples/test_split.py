"""Which chat examples are held out: their fraction, which ones stay together, and what can be on both sides."""

import random
from collections import Counter, defaultdict

import pytest

from pipeline.examples.split import split
from tests.support.pipeline.corpora import texts

_WORDS = sorted({word for text in texts(20) for word in text.lower().replace(".", "").split()})


def _conversation(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": content} for number, content in enumerate(turns)]


def _sentence(rng, words):
    return " ".join(rng.choices(_WORDS, k=words))


def _sides(held_out, labels):
    """Return the sides of each label's examples."""
    sides = defaultdict(set)
    for side, label in zip(held_out.tolist(), labels, strict=True):
        sides[label].add(side)
    return sides


@pytest.mark.parametrize("question", ["Classify: text {}.", "Is the film {} good?", "{}"])
@pytest.mark.parametrize("labels", [["positive", "negative"], ["yes"], [f"class {n}" for n in range(20)]])
def test_common_answers_occur_on_both_sides(question, labels):
    conversations = [_conversation(question.format(n), labels[n % len(labels)]) for n in range(1000)]
    held_out, warning = split(conversations, 1, 0.05)
    assert held_out.sum() == 50 and warning is None
    assert all(False in sides for sides in _sides(held_out, [turns[1]["content"] for turns in conversations]).values())


def test_a_common_answer_is_never_held_out_completely():
    conversations = [_conversation(f"Name of number {n}?", f"label {n // 4}") for n in range(400)]
    for seed in range(5):
        held_out, _ = split(conversations, seed, 0.6)
        assert held_out.sum() == 240
        assert all(False in sides for sides in _sides(held_out, [n // 4 for n in range(400)]).values())


def _family(rng):
    """Return nearly the same question, phrased in several ways."""
    words = rng.choices(_WORDS, k=8)
    question, at = " ".join(words), rng.randrange(8)
    return [
        f"{question}?",
        f"  {question.upper()} !\n",
        " ".join([*words[:at], "other", *words[at + 1 :]]),
        " ".join([*words[:at], "more", *words[at:]]),
        " ".join([*words[:at], *words[at + 1 :]]),
        f"{question} 12",
        f"{question} 345.",
    ]


def test_nearly_the_same_questions_stay_on_one_side():
    rng = random.Random(3)
    families = [_family(rng) for _ in range(150)]
    conversations = [
        (number, _conversation(question, _sentence(rng, 12)))
        for number, family in enumerate(families)
        for question in family
    ]
    held_out, warning = split([turns for _, turns in conversations], 1, 0.1)
    assert 95 <= held_out.sum() <= 105 and warning is None
    assert all(len(sides) == 1 for sides in _sides(held_out, [number for number, _ in conversations]).values())
    order = rng.sample(range(len(conversations)), len(conversations))
    other, _ = split([conversations[place][1] for place in order], 1, 0.1)
    assert [held_out[place] for place in order] == other.tolist()
    again, _ = split([turns for _, turns in conversations], 2, 0.1)
    assert again.tolist() != held_out.tolist()


def test_questions_about_the_same_long_text_stay_on_one_side():
    rng = random.Random(4)
    passages = [_sentence(rng, 90) for _ in range(60)]
    conversations = [
        (n, _conversation(f"{passages[n]}\n\n{_sentence(rng, 6)}?", _sentence(rng, 9))) for n in [*range(60)] * 4
    ]
    held_out, _ = split([turns for _, turns in conversations], 1, 0.1)
    assert held_out.sum() == 24
    assert all(len(sides) == 1 for sides in _sides(held_out, [number for number, _ in conversations]).values())


def test_a_chinese_character_counts_as_a_word():
    rng = random.Random(5)
    conversations = []
    for _ in range(100):
        question = "".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(10))
        conversations += [
            (question, _conversation(f"{text}？", _sentence(rng, 9))) for text in (question, f"{question[:-1]}好")
        ]
    held_out, _ = split([turns for _, turns in conversations], 1, 0.1)
    assert held_out.sum() == 20
    assert all(len(sides) == 1 for sides in _sides(held_out, [question for question, _ in conversations]).values())


def test_a_rare_answer_is_not_revealed_by_another_question():
    rng = random.Random(6)
    answers = [_sentence(rng, 12) for _ in range(100)]
    conversations = [
        (n, _conversation(_sentence(rng, 9), answers[n] if copy else f"{answers[n].upper()}."))
        for n in range(100)
        for copy in range(4)
    ]
    held_out, warning = split([turns for _, turns in conversations], 1, 0.1)
    assert held_out.sum() == 40 and warning is None
    assert all(len(sides) == 1 for sides in _sides(held_out, [number for number, _ in conversations]).values())


def test_every_turn_of_a_conversation_counts():
    rng = random.Random(7)
    conversations = []
    for number in range(100):
        first, second = [(_sentence(rng, 8), _sentence(rng, 12)) for _ in range(2)]
        conversations += [
            (number, _conversation("Hi.", "Hello!", *first)),
            (number, _conversation("Hi.", "Hello!", *first, *second)),
        ]
        # The answer of the second turn, with a question of its own.
        conversations.append((number, _conversation(_sentence(rng, 8), second[1])))
    held_out, warning = split([turns for _, turns in conversations], 1, 0.1)
    assert held_out.sum() == 30 and warning is None
    assert all(len(sides) == 1 for sides in _sides(held_out, [number for number, _ in conversations]).values())


def test_examples_without_a_question_are_split_too():
    conversations = [[{"role": "assistant", "content": text}] for text in texts(40)]
    assert split(conversations, 1, 0.1)[0].sum() == 4


@pytest.mark.parametrize(
    ("conversations", "shared"),
    [
        ([("a", "b"), ("c", "d")], ""),
        ([("a", "b"), ("a", "d")], "a question"),
        ([("a", "b"), ("c", "b")], "an answer"),
        ([("Write a haiku.", f"haiku {n}") for n in range(40)], "a question"),
        ([("Say it.", "it"), ("Say it", "it!")], "a question"),
    ],
)
def test_each_side_has_at_least_one_example(conversations, shared):
    held_out, warning = split([_conversation(*turns) for turns in conversations], 1, 0.05)
    assert held_out.sum() == max(1, len(conversations) // 20)
    assert (warning is None) if not shared else f" share {shared}" in warning


def test_a_missed_fraction_is_explained():
    conversations = [_conversation("Write a haiku.", f"haiku {n}") for n in range(90)]
    conversations += [_conversation(f"Tell me {word}.", f"so {word}") for word in _WORDS[:2]]
    held_out, warning = split(conversations, 1, 0.5)
    assert held_out.tolist() == [False] * 90 + [True] * 2
    assert "2 of 92 examples are held out instead of 46" in warning


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_extreme_fractions(fraction):
    rng = random.Random(8)
    held_out, _ = split([_conversation(_sentence(rng, 9), _sentence(rng, 9)) for _ in range(50)], 1, fraction)
    assert Counter(held_out.tolist()) == ({True: 1, False: 49} if fraction < 0.5 else {True: 49, False: 1})
