"""Greedy and beam search of an encoder-decoder equal decoding without a cache and an exhaustive search."""

import itertools
from typing import Any

import pytest
import torch

from artefacts.errors import RequestError
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from tests.support.training.families import CASES, VOCAB, built, cases, encoder_decoder
from training.inference.generate import Limits
from training.inference.seq2seq import beam_search, greedy, length_penalty
from training.models.registry import build_model, init_weights

BEGIN, END = 1, 2
SOURCES = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18]]
LIMITS = Limits(8, 16, VOCAB - 3, stop_ids={END}, banned_ids={BEGIN, END})


def sharp(section: EncoderDecoderSection, vocab: int = VOCAB, seed: int = 0) -> Any:
    """A model whose targets end now and then."""
    model = build_model(section, vocab)
    init_weights(model, seed)
    with torch.no_grad():
        model.lm_head.weight *= 4
    return model.eval()


def log_probabilities(model: Any, source: list[int], target: list[int], limits: Limits) -> list[float]:
    """Log-probability of each id of a target given those before it, without a cache."""
    ids = torch.tensor([[BEGIN, *target[:-1]]])
    logits = limits.allow(model(ids, source=torch.tensor([source]))[0])
    return logits.log_softmax(-1)[range(len(target)), target].tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", cases("encoder_decoder"))
def test_greedy_equals_decoding_without_a_cache(name: str) -> None:
    model = sharp(CASES[name])  # type: ignore[arg-type]
    targets = greedy(model, SOURCES, BEGIN, LIMITS)
    for source, target in zip(SOURCES, targets, strict=True):
        read: list[int] = []
        while len(read) < 8 and END not in read:
            ids = torch.tensor([[BEGIN, *read]])
            logits = LIMITS.allow(model(ids, source=torch.tensor([source]))[0, -1])
            read.append(int(logits.argmax()))
        assert target == read
    assert [beam.ids for beam in beam_search(model, SOURCES, BEGIN, LIMITS, beams=1)] == targets


@torch.no_grad()
@pytest.mark.parametrize("name", cases("encoder_decoder"))
def test_beam_scores_are_right_and_independent_of_the_batch(name: str) -> None:
    model = sharp(CASES[name], seed=3)  # type: ignore[arg-type]
    together = beam_search(model, SOURCES, BEGIN, LIMITS, beams=4, alpha=0.6)
    for source, target in zip(SOURCES, together, strict=True):
        total = sum(log_probabilities(model, source, target.ids, LIMITS))
        assert target.score == pytest.approx(total / length_penalty(len(target.ids), 0.6), abs=1e-4)
        [alone] = beam_search(model, [source], BEGIN, LIMITS, beams=4, alpha=0.6)
        assert alone.ids == target.ids


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_enough_beams_find_the_best_of_all_targets(seed: int, alpha: float) -> None:
    vocab, most = 5, 3
    model, limits = sharp(encoder_decoder(), vocab, seed), Limits(most, 16, vocab, stop_ids={END})
    source = [3, 4, 0]
    others = [token for token in range(vocab) if token != END]
    targets = [[*ids, END] for n in range(most) for ids in itertools.product(others, repeat=n)]
    targets += [list(ids) for ids in itertools.product(others, repeat=most)]
    scores = [
        sum(log_probabilities(model, source, target, limits)) / length_penalty(len(target), alpha) for target in targets
    ]
    [hypothesis] = beam_search(model, [source], BEGIN, limits, beams=len(others) ** most, alpha=alpha)
    assert hypothesis.score == pytest.approx(max(scores), abs=1e-4)
    assert hypothesis.ids == targets[scores.index(max(scores))]


def test_length_penalty_at_zero_and_for_one_id() -> None:
    assert length_penalty(1, 0.7) == length_penalty(9, 0.0) == 1.0
    assert length_penalty(7, 1.0) == 2.0


def test_unreadable_sources_are_refused() -> None:
    model = built(encoder_decoder())
    for source in ([], [VOCAB], [3] * 17):
        with pytest.raises(RequestError):
            greedy(model, [[3, 4], source], BEGIN, LIMITS)
    assert greedy(model, [], BEGIN, LIMITS) == beam_search(model, [], BEGIN, LIMITS, 2) == []
