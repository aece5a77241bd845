"""Class scores equal their definition, computed over the list of examples, and padding rows are never predicted."""

import json
import random

import pytest
import torch

from configs.load import load_recipe
from tests.support.paths import recipe_file
from tokenizer import special_tokens
from tokenizer.characters import CharacterTokenizer
from tokenizer.special_tokens import IGNORED
from training.data.batch import Batch
from training.evaluate.accuracy import ClassScores
from training.evaluate.tasks import Measured
from training.models.registry import build_model, init_weights


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_their_definition(seed: int) -> None:
    generator = random.Random(seed)
    names = [f"c{number}" for number in range(5)]
    true = [generator.randrange(4) for _ in range(60)]  # the last class has no example
    predicted = [answer if generator.random() < 0.6 else generator.randrange(5) for answer in true]
    scores = ClassScores.of(true, predicted, names)
    assert scores.accuracy == pytest.approx(sum(a == b for a, b in zip(true, predicted, strict=True)) / 60)
    assert scores.majority == pytest.approx(max(true.count(c) for c in range(5)) / 60)
    f1s = []
    for number, row in enumerate(scores.per_class()):
        hits = sum(a == b == number for a, b in zip(true, predicted, strict=True))
        precision = hits / predicted.count(number) if number in predicted else 0.0
        recall = hits / true.count(number) if number in true else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert row == {
            "name": names[number],
            "examples": true.count(number),
            "precision": pytest.approx(precision),
            "recall": pytest.approx(recall),
            "f1": pytest.approx(f1),
        }
        if number in true or number in predicted:
            f1s.append(f1)
    assert scores.macro_f1 == pytest.approx(sum(f1s) / len(f1s))


def test_a_class_without_examples_or_predictions_does_not_count() -> None:
    scores = ClassScores.of([0, 1, 1], [0, 1, 1], ["a", "b", "never"])
    assert scores.accuracy == scores.macro_f1 == 1.0


@torch.no_grad()
@pytest.mark.parametrize(("name", "kind"), [("encoder-copy", "token_classification"), ("seq2seq-reverse", "seq2seq")])
def test_padding_rows_of_the_head_are_never_predicted(name: str, kind: str) -> None:
    """The model has more rows than the tokenizer has ids, and here prefers those."""
    recipe = load_recipe(recipe_file(name), [])
    tokenizer = CharacterTokenizer(json.dumps({"reserved": special_tokens.RESERVED, "characters": "abc"}).encode())
    model = build_model(recipe.model, recipe.vocab_size)
    init_weights(model, 0)
    # Larger than the others by the same in every direction that a hidden state may have.
    bias = torch.zeros(recipe.vocab_size).index_fill(0, torch.arange(tokenizer.vocab_size, recipe.vocab_size), 1e3)
    model.lm_head.register_forward_hook(lambda _head, _inputs, out: out + bias)
    measured = Measured(recipe, model.eval(), torch.device("cpu"), tokenizer)
    ids, lengths = torch.tensor([tokenizer.encode("abca"), [*tokenizer.encode("bb"), 0, 0]]), torch.tensor([4, 2])
    labels = ids.masked_fill(torch.arange(4) >= lengths[:, None], IGNORED)
    pairs = {"source": ids, "source_lengths": lengths} if kind == "seq2seq" else {"lengths": lengths}
    measured.add(Batch(ids, labels, **pairs))
    assert measured.examples == 2 and measured.targets == 6
    assert [sample["target"] for sample in measured.samples] == ["abca", "bb"]
    assert recipe.task == kind and all(set(sample["output"]) <= set("abc") for sample in measured.samples)
