"""Completes fixed prompts at every checkpoint, and writes the completions to ``samples.jsonl``."""

from datetime import UTC, datetime

import orjson

from artefacts.metrics_log import SAMPLES, LineWriter
from training.trainer.callback import Callback, StepResult
from training.trainer.callbacks.checkpoint import CheckpointCallback
from training.trainer.callbacks.metrics import MetricsCallback
from training.trainer.callbacks.resilient_writer import ResilientWriter
from training.trainer.context import TrainingContext


class SamplesCallback(Callback):
    """Samples completions with the training weights whenever a checkpoint is saved, except on a signal.

    Sampling is greedy and draws no random numbers, and routers count no tokens in evaluation mode. The losses are
    therefore the same with and without samples.
    """

    def __init__(self, context: TrainingContext, checkpoint: CheckpointCallback, metrics: MetricsCallback) -> None:
        self._context, self._checkpoint, self._metrics = context, checkpoint, metrics
        path = context.run.folder / SAMPLES
        self._lines = ResilientWriter(SAMPLES, lambda _: LineWriter(path))
        self._last_step = -1

    def on_step_end(self, result: StepResult) -> None:
        if self._checkpoint.last_saved == result.step:
            self._sample(result.step)

    def on_train_end(self, step: int) -> None:
        self._sample(step)

    def close(self) -> None:
        self._lines.close()

    def _sample(self, step: int) -> None:
        context = self._context
        if context.sampler is None or step == self._last_step:
            return
        self._last_step = step
        context.engine.eval()
        completions = context.sampler.complete(context.engine, context.ranks)
        context.engine.train()
        if not context.ranks.first:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        samples = list(zip(context.sampler.prompts, completions, strict=True))
        for prompt, completion in samples:
            record = {"kind": "sample", "step": step, "prompt": prompt, "completion": completion, "time": now}
            line = orjson.dumps(record) + b"\n"
            self._lines.write(step, lambda lines, line=line: lines.add(line))  # type: ignore[misc]
        self._metrics.write_samples(step, samples)
