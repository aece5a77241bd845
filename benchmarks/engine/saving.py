"""What a checkpoint costs a step, and how large it is.

    python -m benchmarks.engine.saving [--quick]

The stall is the time of ``Saver.begin``, which the loop waits for; beside it, in turn, the same tensors copied one by
one into host memory that is there already. Files against the bytes of master weights and optimiser state.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.engine.setup import SameTokens, Setup, settle, setup
from benchmarks.paired import Ratio, compare, seconds
from training.checkpoint.index import folder_name
from training.checkpoint.retention import Retention
from training.checkpoint.save import About, Saver
from training.engine.partitions import partitions


def measure(quick: bool = False) -> list[Ratio]:
    """ZeRO-1 and ZeRO-3, master weights apart from the weights and not; ``quick``: fewer rounds."""
    found = []
    for size, precision, stage in (("60M", "bf16", 1), ("60M", "fp32", 1), ("60M", "bf16", 3)):
        found += _saving(size, precision, stage, rounds=5 if quick else 11)
    return found


def _saving(size: str, precision: str, stage: int, rounds: int) -> list[Ratio]:
    made = setup(size, precision, stage)
    _step(made)
    title = f"{size} {precision}, ZeRO-{stage}"
    state = _state(made)
    held = sum(tensor.nbytes for tensor in state)
    pinned = made.ranks.device.type == "cuda"
    host = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned) for tensor in state]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoints"
        saver = Saver(partitions(made.engine), folder, About({}, {}, {}, {"ranks": 1}), made.ranks, Retention(1))
        number, written = 0, []

        def save() -> float:
            nonlocal number
            number += 1
            settle(made.ranks)
            stall = seconds(lambda: saver.begin(number, {}, {}))
            began = time.perf_counter()
            saver.drain()
            written.append(stall + time.perf_counter() - began)
            return stall

        def copy() -> float:
            settle(made.ranks)
            return seconds(lambda: _copy(state, host, made))

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
        size_on_disk = sum(path.stat().st_size for path in (folder / folder_name(number)).iterdir())
        whole = sorted(written)[len(written) // 2]
    smaller = held / size_on_disk
    print(
        f"    {title}: {held / 1e6:.0f} MB, first stall {first:.3f} s, written and published {whole:.2f} s after",
        flush=True,
    )
    name = f"state over files of its checkpoint, {title}"
    return [ratio, Ratio(name, smaller, smaller, smaller, 1 / 1.05, size_on_disk / 1e6, held / 1e6, "MB")]


def _step(made: Setup) -> None:
    """One step, after which there is optimiser state."""
    (batch,) = SameTokens().micro_batches(0, 0, 1, made.engine.train_micro_batch_size_per_gpu())
    made.engine.backward(made.objective(made.engine, batch.to(made.ranks.device))["cross_entropy"] * 1e-3)
    made.engine.step()


def _state(made: Setup) -> list[torch.Tensor]:
    here = partitions(made.engine)
    found = []
    for partition in here.trained:
        kept = here.state(partition).values()
        found += [partition.master.detach(), *(t for t in kept if isinstance(t, torch.Tensor) and t.ndim)]
    return found


def _copy(state: list[torch.Tensor], host: list[torch.Tensor], made: Setup) -> None:
    for tensor, kept in zip(state, host, strict=True):
        kept.copy_(tensor, non_blocking=True)
    settle(made.ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
