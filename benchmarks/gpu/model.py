"""The model of ``configs/deepseek-0.5b.yaml`` on one CUDA device in bf16: training steps and decoding vs. transformers.

    python -m benchmarks.gpu.model [--quick]

Both use the same weights, the same batch and one process. transformers runs with its grouped matrix products, because
its loop waits for the device once per expert, and its batched products copy the experts' weights for every token.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from artefacts.checkout import CHECKOUT
from benchmarks.gpu.attention import on_device
from benchmarks.model.decode import NEW, PROMPT, their_tokens
from benchmarks.model.shapes import ours, transformers_model
from benchmarks.model.step import our_step, their_step
from benchmarks.paired import Ratio, compare, seconds
from configs.load import load_recipe
from training.estimate import flops_per_token
from training.inference.generate import Limits, generate_batch
from training.inference.sampling import Sampling
from training.layers.lm_head import linear_cross_entropy_sum

_RECIPE = load_recipe(CHECKOUT / "configs/deepseek-0.5b.yaml", ["model.num_nextn_predict_layers=0"])
VOCAB, SHAPE = _RECIPE.vocab_size, _RECIPE.model
#: Samples, and tokens per sample. With the smaller batch, a step is bound by kernel launches.
BATCHES = ((8, 1024), (16, 2048))


def measure(quick: bool = False) -> Iterator[Ratio]:
    """Measure steps, the loss's memory, and decoding. ``quick`` uses fewer rounds and tokens."""
    rounds = 3 if quick else 9
    model = ours(SHAPE, torch.bfloat16, VOCAB).cuda()
    peer = transformers_model(SHAPE, torch.bfloat16, "grouped_mm", VOCAB).cuda()
    for samples, length in BATCHES:
        yield from _steps(model, peer, samples, length, rounds)
    yield _loss_memory()
    for batch in (1, 8):
        yield _decoding(model, peer, batch, NEW // 4 if quick else NEW, 2 if quick else 3)


def _steps(model: Any, peer: Any, samples: int, length: int, rounds: int) -> Iterator[Ratio]:
    tokens = torch.randint(0, VOCAB, (samples, length + 1), generator=torch.Generator().manual_seed(0)).cuda()
    batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    step, other, count = our_step(model, *batch), their_step(peer, *batch), samples * length
    difference = abs(step() - other()) / abs(other())
    assert difference < 2e-2, f"losses differ by {difference}"
    size = f"training step, 0.5B bf16, {samples} x {length:,}"
    yield _compare(f"{size}, against transformers (grouped_mm experts)", step, other, count, "tokens/s", rounds)
    flops = count * flops_per_token(SHAPE, VOCAB, length)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    products, per_product = (lambda: torch.mm(a, a)), 2 * 8192**3
    pairs = [(flops / on_device(step, 1) / 1e12, per_product / on_device(products) / 1e12) for _ in range(rounds)]
    shares = sorted(share / ceiling for share, ceiling in pairs)
    middle = sorted(pairs)[rounds // 2]
    title = f"{size}, as a share of plain matrix products"
    yield Ratio(title, shares[rounds // 2], shares[0], shares[-1], None, *middle, "TFLOP/s")
    eager = ours(SHAPE, torch.bfloat16, VOCAB).cuda()
    compiled = ours(SHAPE, torch.bfloat16, VOCAB).cuda()
    compiled.compile_regions()
    steps = our_step(compiled, *batch), our_step(eager, *batch)
    yield _compare(f"{size}, model.compile against without", *steps, count, "tokens/s", rounds)


def _compare(
    title: str, run: Callable[[], Any], peer: Callable[[], Any], amount: float, unit: str, rounds: int
) -> Ratio:
    for _ in range(3):
        run(), peer()
    return compare(title, lambda: on_device(run, 2), lambda: on_device(peer, 2), amount, unit, None, rounds)


def _decoding(model: Any, peer: Any, batch: int, new: int, rounds: int) -> Ratio:
    model.eval(), peer.eval()
    prompts = torch.randint(0, VOCAB, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    limits = Limits(new, PROMPT + NEW, VOCAB)

    def generate() -> list[list[int]]:
        return generate_batch(model, prompts.tolist(), limits, Sampling(temperature=0), seed=0)

    other = their_tokens(peer, prompts.cuda())
    generate(), other(8)
    title = f"decoding, 0.5B bf16, batch {batch}, against transformers (grouped_mm experts)"
    return compare(
        title, lambda: seconds(generate), lambda: seconds(lambda: other(new)), batch * new, "tokens/s", None, rounds
    )


def _loss_memory() -> Ratio:
    """Compare our loss (Liger's kernel if it is installed) with plain cross-entropy.

    There are 131,072 ids and 8,192 rows with 2,048 columns.
    """
    hidden = torch.randn(8192, 2048, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(131_072, 2048, device="cuda", dtype=torch.bfloat16).requires_grad_()
    labels = torch.randint(0, 131_072, (8192,), device="cuda")
    peaks = []
    for loss in (
        lambda: linear_cross_entropy_sum(hidden, weight, labels),
        lambda: F.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum"),
    ):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(loss(), (hidden, weight))
        peaks.append((torch.cuda.max_memory_allocated() - before) / 1e6)
    times = peaks[1] / peaks[0]
    return Ratio("memory of the loss at 131,072 ids, against plain", times, times, times, 4, *peaks, "MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and tokens")
    for ratio in measure(parser.parse_args().quick):
        print(ratio, flush=True)


if __name__ == "__main__":
    main()
