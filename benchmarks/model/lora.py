"""A training step and the optimizer state with LoRA against full fine-tuning: same model, same batch, one process.

    python -m benchmarks.model.lora [--quick]

A step is a forward pass, a backward pass and an optimizer step of the DeepSpeed engine at ZeRO stage 1, as in
``make finetune``. The two engines take turns.
"""

import argparse
from collections.abc import Callable, Iterator

from benchmarks.engine.setup import LENGTH, SAMPLES, SameTokens, Setup, setup, synchronize
from benchmarks.paired import Ratio, compare, seconds
from configs.schema.adapter import LoraSection
from training.engine.partitions import partitions

#: Adapters on all linear layers, as by default, and also on the routed experts.
ADAPTERS = {
    "rank 8": LoraSection(rank=8, alpha=16),
    "rank 8 with routed experts": LoraSection(
        rank=8, alpha=16, targets=("attention", "dense", "shared_experts", "routed_experts")
    ),
}
#: LoRA's step is at least this many times faster, and its optimizer state at most 5% of the full state.
FASTER, SMALLER = 1.3, 20.0


def measure(quick: bool = False) -> Iterator[Ratio]:
    """Measure the 60M model in both precisions. ``quick`` uses the 17M model in fp32 and fewer rounds."""
    size, rounds = ("17M", 3) if quick else ("60M", 9)
    for precision in ("fp32",) if quick else ("fp32", "bf16"):
        full = setup(size, precision, stage=1)
        for name, lora in ADAPTERS.items():
            yield from _against_full(f"{size} {precision}", full, name, setup(size, precision, 1, lora=lora), rounds)


def _against_full(title: str, full: Setup, name: str, lora: Setup, rounds: int) -> Iterator[Ratio]:
    ours, peer = _step(lora), _step(full)
    ours(), peer()
    # The target is for the default, which leaves routed experts alone.
    target = FASTER if name in list(ADAPTERS)[:1] else None
    count = SAMPLES * LENGTH
    yield compare(
        f"fine-tuning step, {title}, LoRA of {name} against all weights",
        lambda: seconds(ours),
        lambda: seconds(peer),
        count,
        "tokens/s",
        target,
        rounds,
    )
    small, large = _state_bytes(lora), _state_bytes(full)
    times = large / small
    kept = f"optimizer state, {title}, LoRA of {name} against all weights"
    yield Ratio(kept, times, times, times, SMALLER if target else None, small / 1e6, large / 1e6, "MB")


def _step(parts: Setup) -> Callable[[], None]:
    (batch,) = SameTokens().micro_batches(0, 0, 1, SAMPLES)
    parts.engine.train()

    def step() -> None:
        moved = batch.to(parts.ranks.device)
        parts.engine.backward(parts.objective(parts.engine, moved)["cross_entropy"] / batch.labels.numel())
        parts.engine.step()
        synchronize(parts.ranks)

    return step


def _state_bytes(parts: Setup) -> int:
    """Return the size in bytes of the fp32 master weights and the optimizer's state."""
    local = partitions(parts.engine)
    states = [[part.master, *local.state(part).values()] for part in local.trained]
    return sum(tensor.nbytes for tensors in states for tensor in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller model only, fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
