"""Greedy decoding against transformers' ``generate`` with its cache: 256 new tokens after a prompt of 256 tokens.

    python -m benchmarks.model.decode [--quick]

The entire call is timed, including the prefill. Both give the same tokens, which is asserted in fp32. transformers uses
its fastest implementation of experts.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.model.shapes import EXPERTS, SHAPES, VOCAB, ours, transformers_model
from benchmarks.model.step import DTYPES, quickest
from benchmarks.paired import Ratio, compare, seconds
from training.inference.generate import Limits, generate_batch
from training.inference.sampling import Sampling

PROMPT, NEW = 256, 256


def measure(quick: bool = False) -> Iterator[Ratio]:
    """Measure every size, precision and batch size. ``quick`` uses only 17M and a quarter of the tokens."""
    sizes = list(SHAPES)[: 1 if quick else None]
    new, rounds = (NEW // 4, 2) if quick else (NEW, 3)
    for size in sizes:
        for precision, dtype in DTYPES.items():
            for batch in (1, 8):
                yield _one(size, precision, dtype, batch, new, rounds)


def _one(size: str, precision: str, dtype: torch.dtype, batch: int, new: int, rounds: int) -> Ratio:
    prompts = torch.randint(0, VOCAB, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    model = ours(SHAPES[size], dtype).eval()
    limits = Limits(new, PROMPT + NEW, VOCAB)

    def generate() -> list[list[int]]:
        return generate_batch(model, prompts.tolist(), limits, Sampling(temperature=0), seed=0)

    name, peer = _fastest(size, dtype, prompts)
    if dtype == torch.float32:
        assert generate() == peer(new), "other tokens than transformers'"
    title = f"decoding, {size} {precision}, batch {batch}, against transformers ({name} experts)"
    return compare(
        title, lambda: seconds(generate), lambda: _seconds_of(peer, new), batch * new, "tokens/s", 2.0, rounds
    )


def their_tokens(model: Any, prompts: torch.Tensor) -> Callable[[int], list[list[int]]]:
    """Return a function that runs transformers' ``generate`` with its cache on ``prompts`` [B, T].

    Its argument is the number of new tokens.
    """

    def tokens(count: int) -> list[list[int]]:
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        generated: list[list[int]] = out[:, prompts.shape[1] :].tolist()
        return generated

    return tokens


def _fastest(size: str, dtype: torch.dtype, prompts: torch.Tensor) -> tuple[str, Callable[[int], list[list[int]]]]:
    """Find transformers' fastest implementation of experts on this machine.

    An implementation that is five times slower than another over a few tokens is not measured further.
    """
    ways = {name: their_tokens(transformers_model(SHAPES[size], dtype, name).eval(), prompts) for name in EXPERTS}
    few = {name: min(_seconds_of(tokens, 4) for _ in range(2)) for name, tokens in ways.items()}
    close = [name for name in EXPERTS if few[name] < 5 * min(few.values())]
    best = quickest({name: partial(ways[name], NEW // 4) for name in close}, 3)
    return best, ways[best]


def _seconds_of(tokens: Callable[[int], list[list[int]]], count: int) -> float:
    return seconds(lambda: tokens(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller size only, fewer tokens and rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
