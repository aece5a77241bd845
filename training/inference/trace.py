"""Generation traces: each new token's probability, its rank, and the alternatives."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from training.inference.generate import CausalLM, Limits, generate
from training.inference.sampling import Sampling, probabilities

#: Number of alternatives to list per step.
_ALTERNATIVES = 5


@dataclass(frozen=True)
class Step:
    """One token of a completion.

    Probabilities refer to the distribution from which the token was sampled, after temperature, top-k and top-p. Greedy
    generation does not sample, so its probabilities are the model's own, at temperature 1 over all allowed tokens.

    Attributes:
        token: the token's id.
        probability: the token's probability.
        rank: the token's rank, 1 for the most likely. Tokens of equal probability share a rank.
        alternatives: the most likely other tokens and their probabilities, excluding tokens of probability 0.
        entropy: entropy of the distribution, in nats.
        log_probability: the token's log-probability under the model, at temperature 1 over all allowed tokens.
    """

    token: int
    probability: float
    rank: int
    alternatives: list[tuple[int, float]]
    entropy: float
    log_probability: float


def traced(
    model: CausalLM,
    prompt_ids: Sequence[int],
    limits: Limits,
    sampling: Sampling,
    *,
    seed: int,
    on_step: Callable[[Step], None],
) -> Iterator[int]:
    """Yield the same ids as :func:`training.inference.generate.generate`. ``on_step`` is called before each id.

    Raises:
        RequestError: the prompt cannot be continued. Raised by the call itself, not on the first iteration.
    """

    def observe(logits_BV: torch.Tensor, sampled: dict[int, int]) -> None:
        on_step(step_of(logits_BV[0], sampled[0], sampling))

    return generate(model, prompt_ids, limits, sampling, seed=seed, observe=observe)


def step_of(logits_V: torch.Tensor, token: int, sampling: Sampling) -> Step:
    """Build the step for a token sampled from logits [V], in which banned tokens are at minus infinity."""
    logits_V = logits_V.float().cpu()
    shown_by = replace(sampling, temperature=1.0, top_k=0, top_p=1.0) if sampling.greedy else sampling
    probs_V = probabilities(logits_V, shown_by)
    best = probs_V.topk(min(_ALTERNATIVES + 1, len(probs_V)))
    others = [(int(i), float(p)) for i, p in zip(best.indices, best.values, strict=True) if int(i) != token and p > 0]
    return Step(
        token=token,
        probability=float(probs_V[token]),
        rank=1 + int((probs_V > probs_V[token]).sum()),
        alternatives=others[:_ALTERNATIVES],
        entropy=float(torch.special.entr(probs_V.double()).sum()),
        log_probability=float(logits_V.log_softmax(-1)[token]),
    )


def lines(steps: Sequence[Step], label: Callable[[int], str]) -> list[str]:
    """Format the steps as the lines of a table. ``label`` returns a token's text."""
    rows = [f"{'step':>4}  {'token':<14}{'probability':>11}{'rank':>6}  others"]
    for number, step in enumerate(steps, start=1):
        others = "  ".join(f"{label(token)} {probability:.3f}" for token, probability in step.alternatives)
        rows.append(f"{number:>4}  {label(step.token):<14}{step.probability:>11.4f}{step.rank:>6}  {others}".rstrip())
    return rows
