"""How each new token came about: its probability, its rank, and what else might have come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from training.inference.generate import CausalLM, Limits, generate
from training.inference.sampling import Sampling, probabilities

#: Other tokens that a step tells of.
_ALTERNATIVES = 5


@dataclass(frozen=True)
class Step:
    """One token of a completion.

    Probabilities are those that it was drawn by: after temperature, top-k and top-p. Greedy generation draws nothing:
    there they are the model's own, of temperature 1 over all tokens.

    Attributes:
        token: its id.
        probability: that it had.
        rank: 1 for the most likely; tokens as likely share one.
        alternatives: the most likely others, with their probabilities, those of probability 0 left out.
        entropy: of the probabilities, in nats.
        log_probability: of the token under the model itself, at temperature 1 over all allowed tokens.
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
    tell: Callable[[Step], None],
) -> Iterator[int]:
    """The same ids as :func:`training.inference.generate.generate`; ``tell`` is told of each before it is yielded.

    Raises RequestError at once when the prompt cannot be continued.
    """

    def observe(logits_BV: torch.Tensor, drawn: dict[int, int]) -> None:
        tell(step_of(logits_BV[0], drawn[0], sampling))

    return generate(model, prompt_ids, limits, sampling, seed=seed, observe=observe)


def step_of(logits_V: torch.Tensor, token: int, sampling: Sampling) -> Step:
    """What there is to tell of a token that was drawn from logits [V], those of banned tokens at minus infinity."""
    logits_V = logits_V.float().cpu()
    shown = replace(sampling, temperature=1.0, top_k=0, top_p=1.0) if sampling.greedy else sampling
    chances_V = probabilities(logits_V, shown)
    best = chances_V.topk(min(_ALTERNATIVES + 1, len(chances_V)))
    others = [(int(i), float(p)) for i, p in zip(best.indices, best.values, strict=True) if int(i) != token and p > 0]
    return Step(
        token=token,
        probability=float(chances_V[token]),
        rank=1 + int((chances_V > chances_V[token]).sum()),
        alternatives=others[:_ALTERNATIVES],
        entropy=float(torch.special.entr(chances_V.double()).sum()),
        log_probability=float(logits_V.log_softmax(-1)[token]),
    )


def lines(steps: Sequence[Step], label: Callable[[int], str]) -> list[str]:
    """A table of the steps, with ``label`` spelling tokens."""
    rows = [f"{'step':>4}  {'token':<14}{'probability':>11}{'rank':>6}  others"]
    for number, step in enumerate(steps, start=1):
        others = "  ".join(f"{label(token)} {chance:.3f}" for token, chance in step.alternatives)
        rows.append(f"{number:>4}  {label(step.token):<14}{step.probability:>11.4f}{step.rank:>6}  {others}".rstrip())
    return rows
