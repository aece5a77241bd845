"""A training step (forward and backward) against transformers: same weights, same batch, one process.

    python -m benchmarks.model.step [--quick]

transformers uses its fastest implementation of experts, which is determined in the same run, and its own loss
(``labels=``). Both run in eager mode with the default allocator settings. The settings of ``python -m launch`` help
transformers more than ours, which allocates less. Our speed is also given as a fraction of the speed of plain matrix
products in the same run.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.model.shapes import EXPERTS, SHAPES, VOCAB, ours, transformers_model
from benchmarks.paired import Ratio, compare, seconds
from training.estimate import flops_per_token

BATCH, LENGTH = 8, 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(quick: bool = False) -> Iterator[Ratio]:
    """Measure every size and precision. ``quick`` uses only 17M and fewer rounds."""
    for size in list(SHAPES)[: 1 if quick else None]:
        for precision, dtype in DTYPES.items():
            yield from _one(size, precision, dtype, 3 if quick else 9)


def _one(size: str, precision: str, dtype: torch.dtype, rounds: int) -> Iterator[Ratio]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (BATCH, LENGTH + 1), generator=generator)
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    our_loss = our_step(ours(SHAPES[size], dtype), *batch)
    name, peer = _fastest(size, dtype, *batch)
    difference = abs(our_loss() - peer()) / abs(peer())
    assert difference < (1e-5 if dtype == torch.float32 else 2e-2), f"losses differ by {difference}"
    count = BATCH * LENGTH
    title = f"training step, {size} {precision}, against transformers ({name} experts)"
    yield compare(title, lambda: seconds(our_loss), lambda: seconds(peer), count, "tokens/s", 1.3, rounds)
    flops = count * flops_per_token(SHAPES[size], VOCAB, LENGTH)
    yield _share_of_ceiling(f"{size} {precision}", our_loss, dtype, flops, rounds)


def our_step(model: Any, inputs: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    def step() -> float:
        model.zero_grad()
        sums = model(inputs, [labels])
        loss = sums["cross_entropy"] / labels.numel()
        loss.backward()
        return float(loss.detach())

    model.train()
    return step


def their_step(model: Any, inputs: torch.Tensor, labels: torch.Tensor) -> Callable[[], float]:
    def step() -> float:
        model.zero_grad()
        # Pass shifted labels. Otherwise its loss shifts them itself, and has fewer targets than ours.
        loss = model(input_ids=inputs, labels=labels, shift_labels=labels, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    model.train()
    return step


def _fastest(
    size: str, dtype: torch.dtype, inputs: torch.Tensor, labels: torch.Tensor
) -> tuple[str, Callable[[], float]]:
    """Find transformers' fastest implementation of experts on this machine.

    An implementation that is five times slower than another on a short text is not measured further.
    """
    few = {
        name: their_step(transformers_model(SHAPES[size], dtype, name), inputs[:1, :128], labels[:1, :128])
        for name in EXPERTS
    }
    quick = {name: min(seconds(step) for _ in range(2)) for name, step in few.items()}
    close = [name for name in EXPERTS if quick[name] < 5 * min(quick.values())]
    steps = {name: their_step(transformers_model(SHAPES[size], dtype, name), inputs, labels) for name in close}
    best = quickest(steps, 6)
    return best, steps[best]


def quickest(works: dict[str, Callable[[], object]], rounds: int) -> str:
    """Return the name of the fastest candidate. They take turns, so that a temporary slowdown affects all of them."""
    times = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds)]
    return min(works, key=lambda name: min(time[name] for time in times))


def _share_of_ceiling(title: str, step: Callable[[], float], dtype: torch.dtype, flops: float, rounds: int) -> Ratio:
    """Compare our step's model FLOP/s with the FLOP/s of a product of two 2,048 x 2,048 matrices. They take turns."""
    a = torch.randn(2048, 2048).to(dtype)
    shares, speeds, ceilings = [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(3):
            torch.mm(a, a)
        ceilings.append(3 * 2 * 2048**3 / (time.perf_counter() - began) / 1e9)
        speeds.append(flops / seconds(step) / 1e9)
        shares.append(speeds[-1] / ceilings[-1])
    middle = (statistics.median(speeds), statistics.median(ceilings))
    return Ratio(
        f"training step, {title}, as a share of plain matrix products",
        statistics.median(shares),
        min(shares),
        max(shares),
        None,
        *middle,
        "GFLOP/s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller size only, fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
