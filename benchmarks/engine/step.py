"""Our loop beside a bare DeepSpeed loop over the same engine: what counting, balancing, polling and logging cost.

    python -m benchmarks.engine.step [--quick]

The bare loop is that of DeepSpeed's documentation: forward, ``engine.backward``, ``engine.step``. Ours has every hook
of a run but validation: metrics to file and TensorBoard, spikes and skipped steps watched, a hang waited for,
checkpoints armed and none due.
"""

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

from artefacts.signals import StopRequest
from benchmarks.engine.setup import LENGTH, LENGTHS, SAMPLES, SameTokens, Setup, settle, setup
from benchmarks.paired import Ratio, compare, seconds
from configs.schema.watch import WatchSection
from training.checkpoint.retention import Retention
from training.checkpoint.save import About, Saver
from training.data.prefetch import Prefetched
from training.engine.deepspeed_config import clips_itself
from training.engine.partitions import partitions
from training.trainer.callbacks.checkpoint import CheckpointHook
from training.trainer.callbacks.hang import HangHook
from training.trainer.callbacks.metrics import MetricsHook
from training.trainer.callbacks.stability import SkippedSteps, SpikeDetector, WatchHook
from training.trainer.load_balancer import Balancer
from training.trainer.trainer import Trainer

#: Ours may take 3 % more than the bare loop.
TARGET = 1 / 1.03


def measure(quick: bool = False) -> list[Ratio]:
    """A narrow model, where overhead shows most, a small and a larger one; ``quick``: the narrow and the small one."""
    small = [("narrow", precision, 1) for precision in ("fp32", "bf16")]
    small += [("17M", precision, accumulation) for precision in ("fp32", "bf16") for accumulation in (1, 2)]
    cases = small if quick else [*small, ("60M", "fp32", 1), ("60M", "bf16", 1)]
    return [_against_bare(*case, rounds=5 if quick else 9) for case in cases]


def _against_bare(size: str, precision: str, accumulation: int, rounds: int) -> Ratio:
    made = setup(size, precision, stage=1, micro_batch=SAMPLES // accumulation)
    length = LENGTHS.get(size, LENGTH)
    data = SameTokens(length=length)
    steps = 40 if made.ranks.device.type == "cuda" or size == "narrow" else 3
    with (
        tempfile.TemporaryDirectory() as folder,
        HangHook(Path(folder) / "stacks", WatchSection().hang_seconds, 0) as hang,
        Prefetched(data, 2, made.train.steps, made.ranks.device) as read,
    ):
        trainer = _trainer(made, read, hang, Path(folder))
        done = 0

        def ours() -> float:
            nonlocal done
            begin, done = done, done + steps
            return seconds(lambda: _ours(trainer, made, begin, done))

        def bare() -> float:
            return seconds(lambda: _bare(made, data, steps))

        ours(), bare()
        name = f"step, {size} {precision}, accumulation {accumulation}, against a bare DeepSpeed loop"
        return compare(name, ours, bare, steps * SAMPLES * length, "tokens/s", TARGET, rounds)


def _trainer(made: Setup, data: Prefetched, hang: HangHook, folder: Path) -> Trainer:
    with contextlib.redirect_stderr(io.StringIO()):
        metrics = MetricsHook(folder, "bench", 0, made.train.steps, 1e6, 1, made.ranks)
    about = About({}, {}, {}, {"ranks": 1})
    saver = Saver(partitions(made.engine), folder / "checkpoints", about, made.ranks, Retention(1))
    watch = WatchSection()
    spikes = SpikeDetector(watch.spike_window, watch.spike_deviations)
    watched = WatchHook(SkippedSteps(watch.skipped_in_a_row), spikes, metrics, made.ranks.first)
    hooks = [watched, CheckpointHook(saver, 10**6, 0, lambda _: {}, dict), metrics, hang]
    clip = made.train.max_grad_norm if clips_itself(made.train) else None
    balancer = Balancer(made.engine.module, made.train.router_bias_update_rate)
    return Trainer(made.engine, data, made.objective, lambda _: 1e-4, balancer, made.ranks, hooks, StopRequest(), clip)


def _ours(trainer: Trainer, made: Setup, begin: int, end: int) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.run(begin, made.train.steps, stop_at=end)
    settle(made.ranks)


def _bare(made: Setup, data: SameTokens, steps: int) -> None:
    engine = made.engine
    engine.train()
    for step in range(steps):
        for batch in data.micro_batches(step, 0, 1, engine.train_micro_batch_size_per_gpu()):
            here = batch.to(made.ranks.device)
            loss = made.objective(engine, here)["cross_entropy"] / here.labels.numel()
            engine.backward(loss)
            engine.step()
    settle(made.ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model only, fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
