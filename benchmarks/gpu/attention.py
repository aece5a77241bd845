"""Attention on a CUDA device at DeepSeek-V3's widths (queries 192, values 128): ours against every other kernel.

    python -m benchmarks.gpu.attention [--quick]

Forward and backward passes in bf16 with 16 heads. Some of PyTorch's kernels accept values that are narrower than
queries, others need padding. The second part packs an increasing number of documents into a sample.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.paired import Ratio, compare
from training.layers.attention import causal_attention
from training.layers.packed_documents import Documents

HEADS, QUERY, VALUE = 16, 192, 128
#: Number of heads, query width and value width in ``configs/deepseek-0.5b.yaml``.
SMALL = 12, 96, 64
SCALE = QUERY**-0.5


def measure(quick: bool = False) -> Iterator[Ratio]:
    """Compare kernels, then packed documents. ``quick`` uses fewer rounds."""
    rounds = 3 if quick else 9
    for samples, length in ((8, 1024), (2, 4096), (1, 8192)):
        yield from _kernels(samples, length, rounds)
    for parts in (4, 16, 64):
        yield _documents(8192, parts, rounds)
    yield _cost_of_masking(8, 2048, 4, rounds)


def on_device(work: Callable[[], object], repeats: int = 10) -> float:
    """Return the seconds per call, averaged over several consecutive calls and measured by the device's clock."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / repeats


def _inputs(
    samples: int, length: int, heads: int = HEADS, query: int = QUERY, value: int = VALUE
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(samples, heads, length, width) for width in (query, query, value)]
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for shape in shapes]


def _with_gradients(attend: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
    upstream = torch.randn_like(inputs[2])

    def work() -> torch.Tensor:
        out = attend(*inputs)
        torch.autograd.grad(out, inputs, upstream)
        return out

    return work


def _kernels(samples: int, length: int, rounds: int) -> Iterator[Ratio]:
    inputs = _inputs(samples, length)
    ours = _with_gradients(lambda q, k, v: causal_attention(q, k, v, SCALE), inputs)
    expected = ours().float()
    for name, attend in _peers().items():
        work = _with_gradients(attend, inputs)
        try:
            difference = (work().float() - expected).abs().max().item()
        except Exception as error:
            print(f"{name}: not on this machine: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        assert difference < 0.1, f"{name} differs by {difference}"
        for _ in range(3):
            ours(), work()
        title = f"attention, {samples} x {length:,}, against {name}"
        amount = samples * length
        yield compare(title, lambda: on_device(ours), lambda: on_device(work), amount, "tokens/s", None, rounds)  # noqa: B023


def _peers() -> dict[str, Callable[..., torch.Tensor]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def by(backend: SDPBackend, fill: bool) -> Callable[..., torch.Tensor]:
        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            filled = F.pad(v, (0, QUERY - VALUE)) if fill else v
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, filled, is_causal=True, scale=SCALE)[..., :VALUE]

        return attend

    compiled, masks = torch.compile(flex_attention, dynamic=False), {}

    def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        length = q.shape[2]
        if length not in masks:
            masks[length] = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device="cuda")
        return compiled(q, k, v, block_mask=masks[length], scale=SCALE)

    return {
        "cuDNN, values unpadded": by(SDPBackend.CUDNN_ATTENTION, False),
        "cuDNN, values zero-padded": by(SDPBackend.CUDNN_ATTENTION, True),
        "flash, values unpadded": by(SDPBackend.FLASH_ATTENTION, False),
        "flash, values zero-padded": by(SDPBackend.FLASH_ATTENTION, True),
        "memory-efficient, values unpadded": by(SDPBackend.EFFICIENT_ATTENTION, False),
        "FlexAttention": flex,
    }


def _documents(length: int, parts: int, rounds: int) -> Ratio:
    inputs = _inputs(1, length)

    def packed(count: int) -> Callable[[], torch.Tensor]:
        starts = torch.arange(0, length + 1, length // count, dtype=torch.int32, device="cuda")
        documents = Documents(starts, 1, length)
        return _with_gradients(lambda q, k, v: causal_attention(q, k, v, SCALE, documents), inputs)

    many, one = packed(parts), packed(1)
    for _ in range(3):
        many(), one()
    title = f"attention over a sample of {length:,}, {parts} documents against one ({parts} by the sum of squares)"
    return compare(title, lambda: on_device(many), lambda: on_device(one), length, "tokens/s", None, rounds)


def _cost_of_masking(samples: int, length: int, parts: int, rounds: int) -> Ratio:
    """Compare packed documents that are kept apart with the same samples, each read as a single document."""
    inputs = _inputs(samples, length, *SMALL)
    starts = torch.arange(0, samples * length + 1, length // parts, dtype=torch.int32, device="cuda")
    documents = Documents(starts, samples, length)
    apart = _with_gradients(lambda q, k, v: causal_attention(q, k, v, 0.1, documents), inputs)
    as_one = _with_gradients(lambda q, k, v: causal_attention(q, k, v, 0.1), inputs)
    for _ in range(3):
        apart(), as_one()
    title = f"attention of deepseek-0.5b, {samples} x {length:,}, {parts} documents per sample, masked against unmasked"
    amount = samples * length
    return compare(title, lambda: on_device(apart), lambda: on_device(as_one), amount, "tokens/s", None, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio, flush=True)


if __name__ == "__main__":
    main()
