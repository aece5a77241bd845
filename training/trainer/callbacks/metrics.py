"""Where a run's numbers go: a progress bar on rank 0, ``metrics.jsonl``, TensorBoard.

``metrics.jsonl`` is appended to, a JSON object per line, each with ``step``, ``kind`` (``train`` or ``validation``) and
``time``, the wall-clock time in UTC.
A resumed run repeats the steps after its checkpoint: readers take the last line of a step (``read_metrics``).
"""

import resource
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import torch

from artefacts.metrics_log import _Lines
from artefacts.progress import bar
from training.distributed.ranks import Ranks
from training.trainer.callbacks.resilient_writer import Sink
from training.trainer.trainer import Hook, StepResult

FILE = "metrics.jsonl"


#: Steps between the routers' values in TensorBoard, whose checksums are computed in Python, and between the single
#: experts': thousands of curves in a large model.
_LAYERS_EVERY, _EXPERTS_EVERY = 10, 100


class MetricsHook(Hook):
    """Writes every ``log_every``-th step; on rank 0 only."""

    def __init__(
        self, folder: Path, name: str, start: int, steps: int, flops_per_token: float, log_every: int, ranks: Ranks
    ) -> None:
        self._first, self._log_every = ranks.first, log_every
        self._flops, self._device = flops_per_token, ranks.device
        if not ranks.first:
            return
        from training.trainer.callbacks.tensorboard import Board

        self._lines = Sink(FILE, lambda step: _Lines(folder / FILE))
        self._curves = Sink("tensorboard/", lambda step: Board(folder / "tensorboard", step))
        self._lines.open(start + 1)
        self._curves.open(start + 1)
        self._steps = steps
        self._bar = bar(steps, "step", name, initial=start)

    def after_step(self, result: StepResult) -> None:
        if not self._first:
            return
        speed = result.tokens / result.seconds
        left = (self._steps - result.step) * result.seconds
        self._bar.set_postfix_str(f"loss {result.loss:.3f}, {speed:,.0f} tokens/s, {left:.0f} s left", refresh=False)
        self._bar.update()
        if result.step % self._log_every:
            return
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
            "tokens_per_second": round(speed, 1),
            "model_flops_per_second": round(speed * self._flops),
            "memory_bytes": memory_bytes(self._device),
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
        self.write(record)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record with ``kind`` and ``step`` to the file, and its numbers to TensorBoard. Rank 0 only."""
        step, now = record["step"], datetime.now(UTC).isoformat(timespec="milliseconds")
        line = orjson.dumps({**record, "time": now}) + b"\n"
        self._lines.write(step, lambda lines: lines.add(line))
        self._curves.write(step, lambda board: board.add(step, dict(_curves(record))))

    def at_stop(self, step: int) -> None:
        self._close()

    def at_end(self, step: int) -> None:
        self._close()

    def at_failure(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._first:
            self._bar.close()
            self._lines.close()
            self._curves.close()


def _curves(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """What TensorBoard shows of a record; ``metrics.jsonl`` has all of it."""
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
    """The most bytes that were in use: on the GPU, or of this process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
