"""Runs tasks with lm-eval and returns their scores as a table."""

import contextlib
import difflib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# lm-eval imports the Hub's library, which reads this once. Tasks read local files or data that is already cached.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from artefacts.errors import RequestError

#: Resamples for the standard error of metrics that are not a mean, such as perplexity.
_RESAMPLES = 1000

#: Task or group -> {"examples": number or None, "shots": number, "metrics": {metric: {"value", "stderr"}}}.
Scores = dict[str, dict[str, Any]]


def load_tasks(names: Sequence[str], folders: Sequence[Path]) -> tuple[TaskManager, dict[str, Any]]:
    """Load tasks and their data.

    Args:
        names: names of tasks and groups, or paths of task files.
        folders: folders of task files, in addition to lm-eval's own.

    Raises:
        RequestError: there is no such task, or its data cannot be read.
    """
    with _quiet():
        manager = TaskManager(include_path=list(folders), include_defaults=False)
        if any(name not in manager.all_tasks and not Path(name).is_file() for name in names):
            manager = TaskManager(include_path=list(folders))
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            near = difflib.get_close_matches(name, manager.all_tasks, 1)
            raise RequestError(
                f"evaluate.tasks: {name} is neither a task of lm-eval nor of evaluate.task_path"
                f"{f'; the nearest is {near[0]}' if near else ''}"
            )
    loaded: dict[str, Any] = {}
    for name in names:
        try:
            with _quiet():
                one: Any = manager.load([name])
        except Exception as error:  # of lm-eval, datasets, the Hub or the task's own code
            offline = "; to let lm-eval download it, set the environment variable HF_HUB_OFFLINE=0"
            missing = os.environ.get("HF_HUB_OFFLINE") == "1" and "ffline" in repr(error)
            raise RequestError(
                f"evaluate.tasks: {name} cannot be loaded: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}{offline if missing else ''}"
            ) from None
        for part, entries in one.items():
            loaded.setdefault(part, {}).update(entries)
    return manager, loaded


def run_tasks(
    model: LM, names: Sequence[str], folders: Sequence[Path], shots: int | None, limit: int | None, chat: bool
) -> Scores:
    """Run tasks and return the scores of every task, and of every group that defines scores of its own.

    Args:
        model: the model.
        names: names of tasks and groups, or paths of task files.
        folders: folders of task files, in addition to lm-eval's own.
        shots: solved examples before each question, or None for what each task sets.
        limit: maximum number of examples per task.
        chat: whether to ask the questions in the chat format.

    Raises:
        RequestError: as for :func:`load_tasks`; or the model cannot do a task.
    """
    manager, loaded = load_tasks(names, folders)
    with _quiet():
        results: Any = simple_evaluate(
            model,
            tasks=list(loaded["tasks"].values()),
            num_fewshot=shots,
            limit=limit,
            bootstrap_iters=_RESAMPLES,
            log_samples=False,
            apply_chat_template=chat,
            task_manager=manager,
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
