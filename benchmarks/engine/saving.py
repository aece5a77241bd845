"""How long a step waits for a checkpoint, and how large the checkpoint is.

    python -m benchmarks.engine.saving [--quick]

The stall is the time that training waits for ``Saver.begin``. It is compared with the time to copy the same tensors,
one by one, into host memory that is already allocated. The size of the files is compared with the size of the master
weights and the optimizer state.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from artefacts.training_folder import CHECKPOINTS, checkpoint_name
from benchmarks.engine.setup import SameTokens, Setup, setup, synchronize
from benchmarks.paired import Ratio, compare, seconds
from training.checkpoint.retention import Retention
from training.checkpoint.save import RunIdentity, Saver
from training.engine.partitions import partitions


def measure(quick: bool = False) -> list[Ratio]:
    """Measure ZeRO-1 with and without separate master weights, and ZeRO-3. ``quick`` uses fewer rounds."""
    ratios = []
    for size, precision, stage in (("60M", "bf16", 1), ("60M", "fp32", 1), ("60M", "bf16", 3)):
        ratios += _saving(size, precision, stage, rounds=5 if quick else 11)
    return ratios


def _saving(size: str, precision: str, stage: int, rounds: int) -> list[Ratio]:
    parts = setup(size, precision, stage)
    _step(parts)
    title = f"{size} {precision}, ZeRO-{stage}"
    state = _state(parts)
    held = sum(tensor.nbytes for tensor in state)
    pinned = parts.ranks.device.type == "cuda"
    host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned) for tensor in state]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / CHECKPOINTS
        saver = Saver(
            partitions(parts.engine), folder, RunIdentity({}, {}, {}, {"ranks": 1}), parts.ranks, Retention(1)
        )
        number, written = 0, []

        def save() -> float:
            nonlocal number
            number += 1
            synchronize(parts.ranks)
            stall = seconds(lambda: saver.begin(number, {}, {}))
            began = time.perf_counter()
            saver.drain()
            written.append(stall + time.perf_counter() - began)
            return stall

        def copy() -> float:
            synchronize(parts.ranks)
            return seconds(lambda: _copy(state, host, parts))

        first, _ = save(), copy()
        ratio = compare(
            f"stall of a save, {title}, against the copy to host memory",
            save,
            copy,
            held / 1e9,
            "GB/s",
            1 / 1.5,
            rounds,
        )
        size_on_disk = sum(path.stat().st_size for path in (folder / checkpoint_name(number)).iterdir())
        median = sorted(written)[len(written) // 2]
    smaller = held / size_on_disk
    print(
        f"    {title}: {held / 1e6:.0f} MB, first stall {first:.3f} s, written and published {median:.2f} s after",
        flush=True,
    )
    name = f"state over files of its checkpoint, {title}"
    return [ratio, Ratio(name, smaller, smaller, smaller, 1 / 1.05, size_on_disk / 1e6, held / 1e6, "MB")]


def _step(parts: Setup) -> None:
    """Run one step, which creates the optimizer state."""
    (batch,) = SameTokens().micro_batches(0, 0, 1, parts.engine.train_micro_batch_size_per_gpu())
    parts.engine.backward(parts.objective(parts.engine, batch.to(parts.ranks.device))["cross_entropy"] * 1e-3)
    parts.engine.step()


def _state(parts: Setup) -> list[torch.Tensor]:
    local = partitions(parts.engine)
    tensors = []
    for partition in local.trained:
        state = local.state(partition).values()
        tensors += [partition.master.detach(), *(t for t in state if isinstance(t, torch.Tensor) and t.ndim)]
    return tensors


def _copy(state: list[torch.Tensor], host: list[torch.Tensor], parts: Setup) -> None:
    for tensor, kept in zip(state, host, strict=True):
        kept.copy_(tensor, non_blocking=True)
    synchronize(parts.ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
