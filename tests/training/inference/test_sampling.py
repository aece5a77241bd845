"""Sampling: what each setting keeps, and how often tokens are sampled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.inference.sampling import Sampling, keep_top_k, keep_top_p, probabilities, sample


def logits(seed: int, vocab: int) -> torch.Tensor:
    return 3 * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    vocab=st.integers(1, 50),
    temperature=st.floats(0, 3),
    k=st.integers(0, 60),
    p=st.floats(0.01, 1),
)
def test_always_a_distribution_over_the_most_likely(
    seed: int, vocab: int, temperature: float, k: int, p: float
) -> None:
    scores = logits(seed, vocab)
    probs = probabilities(scores, Sampling(temperature, k, p))
    kept = probs > 0
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    assert kept[scores.argmax()] and kept.sum() <= (k or vocab)
    if temperature > 0.1 and not kept.all():
        assert scores[kept].min() >= scores[~kept].max()


def test_top_p_is_the_smallest_set() -> None:
    probs = torch.tensor([0.1, 0.5, 0.15, 0.25])
    torch.testing.assert_close(keep_top_p(probs, 0.5), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(keep_top_p(probs, 0.51), torch.tensor([0.0, 2 / 3, 0.0, 1 / 3]))
    torch.testing.assert_close(keep_top_p(probs, 1.0), probs)


def test_top_k_keeps_exactly_k_of_equals() -> None:
    assert torch.isfinite(keep_top_k(torch.zeros(2, 7), 3)).sum(-1).tolist() == [3, 3]


def test_greedy_and_a_tiny_temperature_take_the_best() -> None:
    scores = logits(0, 30)
    for temperature in (0.0, 1e-30):
        assert probabilities(scores, Sampling(temperature)).argmax() == scores.argmax()


def test_samples_follow_the_probabilities_and_the_seed() -> None:
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2]).expand(20_000, 4)
    first = sample(probs, torch.Generator().manual_seed(1))
    assert first.shape == (20_000,) and torch.equal(first, sample(probs, torch.Generator().manual_seed(1)))
    shares = first.bincount(minlength=4) / len(first)
    torch.testing.assert_close(shares, probs[0], atol=0.015, rtol=0)
    assert shares[1] == 0


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Sampling(**wrong)  # type: ignore[arg-type]
