"""Logs a run's metrics to a progress bar, ``metrics.jsonl``, TensorBoard and W&B, all on rank 0.

Each line of ``metrics.jsonl`` is a JSON object with at least ``kind`` (``train``, ``validation`` or ``event``),
``step`` and ``time`` (wall-clock time in UTC). A resumed run repeats the steps after its checkpoint, so a step may have
several lines. Readers use a step's last line (``artefacts.metrics_log.read_metrics``).
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import torch
from tqdm import tqdm

from artefacts import metrics_log
from artefacts.memory import peak_resident_bytes
from artefacts.metrics_log import LineWriter
from artefacts.progress import bar
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.resilient_writer import ResilientWriter
from training.trainer.callbacks.wandb import WandbWriter
from training.trainer.context import TrainingContext

#: Steps between TensorBoard values per router, and per expert. They are logged less often than other values because
#: TensorBoard computes its checksums in Python, and because a large model has thousands of per-expert curves.
_LAYERS_EVERY, _EXPERTS_EVERY = 10, 100


class MetricsCallback(Callback):
    """Logs every ``train.log_every``-th step, and the records that other callbacks pass to ``write``."""

    def __init__(self, context: TrainingContext) -> None:
        self._context = context
        self._bar: tqdm | None = None
        self._wandb: WandbWriter | None = None

    def on_train_begin(self) -> None:
        self._open()

    def _open(self) -> None:
        """Open the files, W&B and the progress bar, unless they are open. Rank 0 only; other ranks log nothing."""
        if not self._context.ranks.first or self._bar is not None:
            return
        from training.trainer.callbacks.tensorboard import TensorBoardWriter

        run, start, wandb = self._context.run, self._context.start_step, self._context.train.wandb
        self._lines = ResilientWriter(metrics_log.NAME, lambda step: LineWriter(run.folder / metrics_log.NAME))
        self._curves = ResilientWriter("tensorboard/", lambda step: TensorBoardWriter(run.folder / "tensorboard", step))
        self._lines.open(start + 1)
        self._curves.open(start + 1)
        self._wandb = None if wandb is None else WandbWriter(wandb, run)
        self._bar = bar(self._context.train.steps, "step", run.label, initial=start)

    def on_step_end(self, result: StepResult) -> None:
        if self._bar is None:
            return
        speed = result.tokens / result.seconds
        left = (self._context.train.steps - result.step) * result.seconds
        self._bar.set_postfix_str(f"loss {result.loss:.3f}, {speed:,.0f} tokens/s, {left:.0f} s left", refresh=False)
        self._bar.update()
        if result.step % self._context.train.log_every == 0:
            self.write(self._record(result, speed))

    def _record(self, result: StepResult, tokens_per_second: float) -> dict[str, Any]:
        record: dict[str, Any] = {
            "kind": "train",
            "step": result.step,
            "loss": result.loss,
            **result.terms,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "skipped": result.skipped is not None,
            "targets": result.targets,
            "seconds": round(result.seconds, 4),
            "tokens_per_second": round(tokens_per_second, 1),
            "model_flops_per_second": round(tokens_per_second * self._context.flops_per_token),
            "memory_bytes": memory_bytes(self._context.ranks.device),
            "experts": {
                load.layer: {
                    "load": [round(share, 4) for share in load.share],
                    "variation": round(load.variation, 4),
                    "max_over_mean": round(load.max_over_mean, 4),
                    "idle": load.idle,
                    "bias": [round(b, 5) for b in load.bias],
                }
                for load in result.loads
            },
        }
        if result.loss_scale is not None:
            record["loss_scale"] = result.loss_scale
        return record

    def write(self, record: dict[str, Any]) -> None:
        """Append a record to ``metrics.jsonl``, and log its numbers to TensorBoard and W&B. Rank 0 only.

        The record must contain ``kind`` and ``step``; the time is added here.
        """
        self._open()  # a callback that comes earlier may write before the first step
        step, now = record["step"], datetime.now(UTC).isoformat(timespec="milliseconds")
        line = orjson.dumps({**record, "time": now}) + b"\n"
        self._lines.write(step, lambda lines: lines.add(line))
        values = dict(_curves(record))
        self._curves.write(step, lambda curves: curves.add(step, values))
        if self._wandb is not None:
            self._wandb.add(step, values)

    def write_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Log (prompt, completion) pairs to TensorBoard and W&B. Rank 0 only."""
        self._curves.write(step, lambda curves: curves.add_samples(step, samples))
        if self._wandb is not None:
            self._wandb.add_samples(step, samples)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._lines.close()
            self._curves.close()
        if self._wandb is not None:
            self._wandb.close()


def _curves(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield a curve name and value for each number to log to TensorBoard. Not all of the record is logged there."""
    for key, value in record.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("step", "targets"):
            yield f"{record['kind']}/{key}", value
    for layer, experts in record.get("experts", {}).items() if record["step"] % _LAYERS_EVERY == 0 else ():
        for key in ("variation", "max_over_mean", "idle"):
            yield f"experts/{layer}/{key}", experts[key]
        for key in ("load", "bias") if record["step"] % _EXPERTS_EVERY == 0 else ():
            for expert, value in enumerate(experts[key]):
                yield f"experts/{layer}/{key}/{expert}", value


def memory_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes, allocated (GPU) or resident (CPU). On MPS, return the current allocation."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return peak_resident_bytes()
