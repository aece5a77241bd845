"""Sliding-window attention: its time and memory grow linearly with the length, not quadratically.

    python -m benchmarks.model.window [--quick]

Forward and backward passes of attention with 8 heads of width 64 and a window of 256. Time and memory (growth of a
fresh process) are per token, and are compared with the values at the shortest length. Time is also compared with full
causal attention.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.paired import Ratio, compare, seconds
from benchmarks.resident import fresh_peak, grown_by
from training.layers.attention import attention
from training.layers.masks import Mask

HEADS, WIDTH, WINDOW, SHORTEST = 8, 64, 256, 1024
_MASKS = {"window": Mask(True, WINDOW), "full": Mask(True)}
#: The cost per token may double when samples are up to 16 times as long, because they no longer fit into a cache.
_FLAT = 0.5


def measure(quick: bool = False) -> list[Ratio]:
    """Measure four and sixteen times the shortest length. ``quick`` uses only four times, and fewer rounds."""
    rows = []
    for length, rounds in ((4 * SHORTEST, 3),) if quick else ((4 * SHORTEST, 5), (16 * SHORTEST, 3)):
        name = f"{{}} per token in a window of {WINDOW} at {length:,} tokens against {SHORTEST:,}"
        ours, shortest = (_seconds_per_token("window", size) for size in (length, SHORTEST))
        rows.append(compare(name.format("time"), ours, shortest, 1.0, "tokens/s", _FLAT, rounds))
        taken, least = (_bytes_per_token(size) for size in (length, SHORTEST))
        times = least / taken
        rows.append(Ratio(name.format("memory"), times, times, times, _FLAT, taken / 1e3, least / 1e3, "kB per token"))
        name = f"attention over {length:,} tokens, a window of {WINDOW} against all"
        rows.append(compare(name, ours, _seconds_per_token("full", length), 1.0, "tokens/s", 1.0, rounds))
    return rows


def _attend(kind: str, length: int) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, WIDTH, generator=generator).requires_grad_() for _ in range(3))

    def step() -> None:
        out = attention(q, k, v, WIDTH**-0.5, _MASKS[kind])
        out.backward(torch.ones_like(out))
        q.grad = k.grad = v.grad = None

    return step


def _seconds_per_token(kind: str, length: int) -> Callable[[], float]:
    step = _attend(kind, length)
    step()
    return lambda: seconds(step) / length


def _bytes_per_token(length: int) -> float:
    return fresh_peak("benchmarks.model.window", "--memory", str(length)) / length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one length, fewer rounds")
    parser.add_argument("--memory", type=int, help="only the growth of this process at this many tokens: bytes")
    chosen = parser.parse_args()
    if chosen.memory:
        _attend("window", 2 * WINDOW)()  # the first step also starts threads
        print(grown_by(_attend("window", chosen.memory)))
        return
    for ratio in measure(chosen.quick):
        print(ratio)


if __name__ == "__main__":
    main()
