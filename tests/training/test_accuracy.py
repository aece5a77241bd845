"""Scores of classes against their definition, written out over the list of examples."""

import random

import pytest

from training.evaluate.accuracy import ClassScores


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_their_definition(seed: int) -> None:
    generator = random.Random(seed)
    names = [f"c{number}" for number in range(5)]
    true = [generator.randrange(4) for _ in range(60)]  # the last class has no example
    said = [answer if generator.random() < 0.6 else generator.randrange(5) for answer in true]
    scores = ClassScores.of(true, said, names)
    assert scores.accuracy == pytest.approx(sum(a == b for a, b in zip(true, said, strict=True)) / 60)
    assert scores.majority == pytest.approx(max(true.count(c) for c in range(5)) / 60)
    f1s = []
    for number, row in enumerate(scores.per_class()):
        hits = sum(a == b == number for a, b in zip(true, said, strict=True))
        precision = hits / said.count(number) if number in said else 0.0
        recall = hits / true.count(number) if number in true else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert row == {
            "name": names[number],
            "examples": true.count(number),
            "precision": pytest.approx(precision),
            "recall": pytest.approx(recall),
            "f1": pytest.approx(f1),
        }
        if number in true or number in said:
            f1s.append(f1)
    assert scores.macro_f1 == pytest.approx(sum(f1s) / len(f1s))


def test_a_class_that_nobody_has_or_says_does_not_count() -> None:
    scores = ClassScores.of([0, 1, 1], [0, 1, 1], ["a", "b", "never"])
    assert scores.accuracy == scores.macro_f1 == 1.0
