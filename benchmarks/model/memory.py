"""Peak memory of a training step: with activation checkpointing, and for the loss with 131,072 ids.

    python -m benchmarks.model.memory [--quick]

Each number is how much a fresh process's resident memory grows during the forward and backward pass of one step,
including gradients. It is compared with the same step without the feature that is measured.
"""

import argparse

import torch
import torch.nn.functional as F

from benchmarks.model.shapes import SHAPES
from benchmarks.paired import Ratio
from benchmarks.resident import fresh_peak, grown_by
from training.layers.lm_head import linear_cross_entropy_sum
from training.models.deepseek import DeepseekForCausalLM, init_weights

#: With 12 layers and 4 sequences of 1,024 tokens, activations take most of the memory, not weights.
SHAPE = SHAPES["17M"].model_copy(update={"num_hidden_layers": 12, "n_routed_experts": 16})
VOCAB, WIDE_VOCAB, HIDDEN = 4096, 128 * 1024, 256


def measure(quick: bool = False) -> list[Ratio]:
    """Measure checkpointing and the loss. ``quick`` uses shorter sequences."""
    length = 512 if quick else 1024
    peaks = {mode: _peak(f"checkpointing-{mode}", length) for mode in ("none", "selective", "full")}
    losses = {kind: _peak(f"loss-{kind}", length) for kind in ("plain", "pieces")}
    layers = SHAPE.num_hidden_layers
    return [
        _less(f"memory of a step at {layers} layers, full checkpointing against none", peaks["full"], peaks["none"], 2),
        _less("the same, selective against none", peaks["selective"], peaks["none"], None),
        _less("memory of the loss at 131,072 ids, chunked against plain", losses["pieces"], losses["plain"], 4),
    ]


def _less(name: str, ours: float, peers: float, target: float | None) -> Ratio:
    times = peers / ours
    return Ratio(name, times, times, times, target, ours / 1e6, peers / 1e6, "MB")


def _peak(case: str, length: int) -> float:
    return fresh_peak("benchmarks.model.memory", "--case", case, "--length", str(length))


def _checkpointing(mode: str, length: int) -> int:
    model = DeepseekForCausalLM(SHAPE, VOCAB)
    init_weights(model, 0)
    tokens = torch.randint(0, VOCAB, (4, length + 1))

    def step() -> None:
        losses = model(tokens[:, :-1], [tokens[:, 1:]])
        losses["cross_entropy"].backward()
        model.zero_grad()

    # Warm up, because the first steps also start threads and fill caches.
    model.set_activation_checkpointing("full")
    step()
    model.set_activation_checkpointing(mode)  # type: ignore[arg-type]
    return grown_by(step)


def _loss(kind: str, length: int) -> int:
    hidden = torch.randn(4 * length, HIDDEN).requires_grad_()
    weight = (0.02 * torch.randn(WIDE_VOCAB, HIDDEN)).requires_grad_()
    labels = torch.randint(0, WIDE_VOCAB, (4 * length,))

    def step(rows: int) -> None:
        if kind == "pieces":
            loss = linear_cross_entropy_sum(hidden[:rows], weight, labels[:rows])
        else:
            loss = F.cross_entropy(F.linear(hidden[:rows], weight), labels[:rows], reduction="sum")
        loss.backward()
        hidden.grad = weight.grad = None

    step(8)
    return grown_by(lambda: step(4 * length))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter sequences")
    parser.add_argument("--case", help="only this, in this process: bytes")
    parser.add_argument("--length", type=int, default=1024, help="tokens per sequence of --case")
    chosen = parser.parse_args()
    if chosen.case:
        what, _, kind = chosen.case.partition("-")
        print({"checkpointing": _checkpointing, "loss": _loss}[what](kind, chosen.length))
        return
    for ratio in measure(chosen.quick):
        print(ratio)


if __name__ == "__main__":
    main()
