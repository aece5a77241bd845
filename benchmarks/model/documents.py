"""Attention over packed documents: its cost grows with the sum of their squared lengths, not the sample length squared.

    python -m benchmarks.model.documents [--quick]

Forward and backward passes of attention over samples of one length, with an increasing number of documents. They are
compared with the same sample as a single document. The ratio that the sum of squares predicts is shown too.
"""

import argparse

import torch

from benchmarks.paired import Ratio, compare, seconds
from training.layers.attention import causal_attention
from training.layers.packed_documents import Documents

HEADS, QUERY, VALUE = 8, 64, 48


def measure(quick: bool = False) -> list[Ratio]:
    """Measure documents of a quarter, an eighth and a sixteenth of the sample."""
    length, rounds = (2048, 3) if quick else (4096, 5)
    return [_one(length, parts, rounds) for parts in (4, 8, 16)]


def _one(length: int, parts: int, rounds: int) -> Ratio:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, HEADS, length, w, generator=generator).requires_grad_() for w in (QUERY, QUERY, VALUE)]

    def run(documents: int) -> float:
        starts = torch.arange(0, length + 1, length // documents, dtype=torch.int32)

        def attend() -> None:
            out = causal_attention(inputs[0], inputs[1], inputs[2], 0.1, Documents(starts, 1, length))
            out.backward(torch.ones_like(out))

        return seconds(attend)

    run(1), run(parts)
    name = f"attention over a sample of {length:,}, {parts} documents against one ({parts} by the sum of squares)"
    # As a single document, the sample is long enough for PyTorch's fused kernel, which is faster per score than blocks.
    return compare(name, lambda: run(parts), lambda: run(1), length, "tokens/s", None, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter samples, fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
