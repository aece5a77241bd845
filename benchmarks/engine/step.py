"""Our training loop against a bare DeepSpeed loop with the same engine: the cost of counting, balancing and logging.

    python -m benchmarks.engine.step [--quick]

The bare loop is the one in DeepSpeed's documentation: forward, ``engine.backward``, ``engine.step``. Ours runs all
callbacks of a real run: it writes metrics to a file and TensorBoard, watches for loss spikes and skipped steps, and
runs the hang timer. It runs no validation and saves no checkpoint.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

from artefacts.signals import StopRequest
from artefacts.training_folder import CHECKPOINTS, TrainingRun
from benchmarks.engine.setup import LENGTH, LENGTHS, SAMPLES, SameTokens, Setup, setup, synchronize
from benchmarks.paired import Ratio, compare, seconds
from training.checkpoint.retention import Retention
from training.checkpoint.save import RunIdentity, Saver
from training.data.prefetch import Prefetched
from training.engine.partitions import partitions
from training.trainer.callback import Callback
from training.trainer.callbacks.build import build_callbacks
from training.trainer.context import TrainingContext
from training.trainer.load_balancer import Balancer
from training.trainer.trainer import Trainer

#: Ours may take 3% more time than the bare loop.
TARGET = 1 / 1.03


def measure(quick: bool = False) -> list[Ratio]:
    """Measure a narrow model, where overhead shows most, a small one and a larger one. ``quick`` skips the largest."""
    small = [("narrow", precision, 1) for precision in ("fp32", "bf16")]
    small += [("17M", precision, accumulation) for precision in ("fp32", "bf16") for accumulation in (1, 2)]
    cases = small if quick else [*small, ("60M", "fp32", 1), ("60M", "bf16", 1)]
    return [_against_bare(*case, rounds=5 if quick else 9) for case in cases]


def _against_bare(size: str, precision: str, accumulation: int, rounds: int) -> Ratio:
    parts = setup(size, precision, stage=1, micro_batch=SAMPLES // accumulation)
    length = LENGTHS.get(size, LENGTH)
    data = SameTokens(length=length)
    steps = 40 if parts.ranks.device.type == "cuda" or size == "narrow" else 3
    with (
        tempfile.TemporaryDirectory() as folder,
        Prefetched(data, 2, parts.train.steps, parts.ranks.device) as prefetched,
    ):
        context = _context(parts, prefetched, Path(folder))
        callbacks = build_callbacks(context)
        trainer = Trainer(context, callbacks)
        done = 0

        def ours() -> float:
            nonlocal done
            begin, done = done, done + steps
            return seconds(lambda: _ours(trainer, parts, begin, done))

        def bare() -> float:
            return seconds(lambda: _bare(parts, data, steps))

        with _running(callbacks):
            ours(), bare()
            name = f"step, {size} {precision}, accumulation {accumulation}, against a bare DeepSpeed loop"
            return compare(name, ours, bare, steps * SAMPLES * length, "tokens/s", TARGET, rounds)


def _context(parts: Setup, data: Prefetched, folder: Path) -> TrainingContext:
    identity = RunIdentity({}, {}, {}, {"ranks": 1})
    return TrainingContext(
        run=TrainingRun("bench", folder, {}, {}),
        train=parts.train.model_copy(update={"save_every": 0, "eval_every": 0}),
        ranks=parts.ranks,
        engine=parts.engine,
        objective=parts.objective,
        data=data,
        validation=[],
        balancer=Balancer(parts.engine.module, parts.train.router_bias_update_rate),
        saver=Saver(partitions(parts.engine), folder / CHECKPOINTS, identity, parts.ranks, Retention(1)),
        stop=StopRequest(),
        global_batch=SAMPLES,
        flops_per_token=1e6,
    )


@contextlib.contextmanager
def _running(callbacks: list[Callback]) -> Iterator[None]:
    """Context manager that sends callbacks the first event of a training run, and closes them at the end."""
    with contextlib.redirect_stderr(io.StringIO()):
        for callback in callbacks:
            callback.on_train_begin()
    try:
        yield
    finally:
        for callback in callbacks:
            callback.close()


def _ours(trainer: Trainer, parts: Setup, begin: int, end: int) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.run_steps(begin, end)
    synchronize(parts.ranks)


def _bare(parts: Setup, data: SameTokens, steps: int) -> None:
    engine = parts.engine
    engine.train()
    for step in range(steps):
        for batch in data.micro_batches(step, 0, 1, engine.train_micro_batch_size_per_gpu()):
            batch = batch.to(parts.ranks.device)
            loss = parts.objective(engine, batch)["cross_entropy"] / batch.labels.numel()
            engine.backward(loss)
            engine.step()
    synchronize(parts.ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model only, fewer rounds")
    for ratio in measure(parser.parse_args().quick):
        print(ratio)


if __name__ == "__main__":
    main()
