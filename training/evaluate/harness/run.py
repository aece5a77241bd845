"""Runs tasks with lm-eval and returns their scores as a table."""

import contextlib
import difflib
import io
import logging
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# lm-eval imports the Hub's library, which reads this once. Tasks read local files or data that is already cached.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from artefacts.errors import RequestError

#: Resamples for the standard error of metrics that are not a mean, such as perplexity.
_RESAMPLES = 1000

#: Task or group -> {"examples": number or None, "shots": number, "metrics": {metric: {"value", "stderr"}}}.
Scores = dict[str, dict[str, Any]]


class Tasks:
    """Tasks with their data, which several models can run."""

    def __init__(self, names: Sequence[str], folders: Sequence[Path]) -> None:
        """Load tasks and their data.

        Args:
            names: names of tasks and groups, or paths of task files.
            folders: folders of task files, in addition to lm-eval's own.

        Raises:
            RequestError: there is no such task, or its data cannot be read.
        """
        with _quiet():
            self._manager = TaskManager(include_path=list(folders), include_defaults=False)
            if self._unknown(names):
                # Reading the thousands of files that come with lm-eval takes a while.
                self._manager = TaskManager(include_path=list(folders))
        for name in self._unknown(names):
            near = difflib.get_close_matches(name, self._manager.all_tasks, 1)
            raise RequestError(
                f"evaluate.tasks: {name} is neither a task of lm-eval nor of evaluate.task_path"
                f"{f'; the nearest is {near[0]}' if near else ''}"
            )
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        self._tasks: dict[str, Any] = {"tasks": {}, "groups": {}}
        for name in names:
            loaded = self._load(name)
            for part in self._tasks:
                self._tasks[part] |= loaded[part]

    def _unknown(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self._manager.all_tasks and not Path(name).is_file()]

    def _load(self, name: str) -> Any:
        """Return lm-eval's table of tasks and groups for a name."""
        try:
            with _quiet():
                return self._manager.load([name])
        except Exception as error:  # of lm-eval, datasets, the Hub or the task's own code
            offline = "; to let lm-eval download it, set the environment variable HF_HUB_OFFLINE=0"
            missing = os.environ.get("HF_HUB_OFFLINE") == "1" and "ffline" in repr(error)
            raise RequestError(
                f"evaluate.tasks: {name} cannot be loaded: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}{offline if missing else ''}"
            ) from None

    def run(self, model: LM, shots: int | None, limit: int | None, chat: bool) -> Scores:
        """Return the scores of every task, and of every group that defines scores of its own.

        Args:
            model: the model.
            shots: solved examples before each question, or None for what each task sets.
            limit: maximum number of examples per task.
            chat: whether to ask the questions in the chat format.

        Raises:
            RequestError: the model cannot do a task.
        """
        # lm-eval's ``simple_evaluate`` does the same, but also runs pip to describe the environment.
        for task in self._tasks["tasks"].values():
            fixed = task.get_config("num_fewshot")
            if fixed is None or (shots is not None and fixed != 0):
                task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        with _quiet():
            results: Any = evaluate(
                model,
                task_dict=self._tasks,
                limit=limit,
                bootstrap_iters=_RESAMPLES,
                log_samples=False,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        return scores_of(results)


def scores_of(results: dict[str, Any]) -> Scores:
    """Return the scores in lm-eval's results."""
    scores: Scores = {}
    for name, row in sorted(results["results"].items()):
        metrics: dict[str, dict[str, float | None]] = {}
        for key, value in row.items():
            metric, separator, filtered = key.partition(",")
            if not separator or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = row.get(f"{metric}_stderr,{filtered}")
            metrics[metric if filtered == "none" else f"{metric} ({filtered})"] = {
                "value": float(value),
                "stderr": float(stderr) if isinstance(stderr, int | float) else None,
            }
        if metrics:
            examples = results.get("n-samples", {}).get(name, {}).get("effective")
            scores[name] = {"examples": examples, "shots": results["n-shot"].get(name), "metrics": metrics}
    return scores


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's log and progress bars, and let it compute bootstrap estimates without forking this process."""
    logger = logging.getLogger("lm_eval")
    level, processes = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        os.environ.pop("DISABLE_MULTIPROC")
        if processes is not None:
            os.environ["DISABLE_MULTIPROC"] = processes
