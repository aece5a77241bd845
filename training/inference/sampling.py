"""Sampling of the next token from logits, as pure functions of logits, settings and a random generator."""

from dataclasses import dataclass

import torch

#: A temperature below this is treated as 0: dividing by it would overflow fp32.
_MIN_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling the next token.

    Attributes:
        temperature: divisor of the logits. 0 always takes the most likely token (greedy).
        top_k: sample only from the k most likely tokens. 0 for no limit.
        top_p: sample only from the smallest set of tokens whose probabilities sum to this (nucleus sampling, arXiv
            1904.09751). 1 for no limit. Applied after temperature and top-k.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether to always take the most likely token."""
        return self.temperature < _MIN_TEMPERATURE

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature >= 0, top_k >= 0 and 0 < top_p <= 1 are required: {self}")


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the next token's probabilities, [..., V] in fp32, for logits [..., V]. If greedy, they are one-hot."""
    logits = logits.float()
    if sampling.greedy:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    # Subtract the maximum first, so that a low temperature cannot cause overflow.
    scaled = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    return keep_top_p(keep_top_k(scaled, sampling.top_k).softmax(-1), sampling.top_p)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Set all but the k largest logits [..., V] to minus infinity. k = 0 or k >= V changes nothing."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    values, indices = logits.topk(k, dim=-1)
    return torch.full_like(logits, float("-inf")).scatter_(-1, indices, values)


def keep_top_p(probs: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest tokens whose probabilities [..., V] sum to ``p`` or more, at least one, and renormalize them."""
    if p >= 1:
        return probs
    ordered, indices = probs.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    kept = ordered * (mass_before < p)
    return torch.zeros_like(probs).scatter_(-1, indices, kept / kept.sum(-1, keepdim=True))


def sample(probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw one int64 token id [...] per row of ``probs`` [..., V]. ``generator`` must be on the same device."""
    flat = probs.flatten(0, -2) if probs.dim() > 1 else probs[None]
    return torch.multinomial(flat, 1, generator=generator).reshape(probs.shape[:-1])
