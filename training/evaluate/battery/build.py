"""Writes the battery into a folder: a jsonl file per task, and the task files that lm-eval reads.

The same held-out documents, tokenizer, context length and seed give the same bytes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artefacts import atomic
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.data import SourceSection
from pipeline.sources.pydocs import PydocsSource
from pipeline.tokens.indexed_dataset import IndexedDataset, shard_prefixes
from tokenizer.base import Tokenizer
from training.evaluate.battery import questions
from training.evaluate.battery.questions import Example, Passages

#: Version of the examples. It is part of an evaluation's identity.
VERSION = 1
#: Name of the group of all tasks, in ``evaluate.tasks`` and for lm-eval.
NAME = "battery"
#: Number of examples per task.
_EXAMPLES = 100
#: Maximum number of held-out documents to read.
_DOCUMENTS = 2000
#: Packages of the standard library whose documentation is asked about. They exist wherever Python does.
_PACKAGES = (
    "argparse asyncio collections csv datetime email functools heapq http json logging os pathlib random re shutil "
    "statistics string subprocess tarfile textwrap threading unittest urllib xml zipfile"
)
_TASK_FILES = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class _Task:
    """A task's name, and the function that returns its examples."""

    name: str
    examples: Callable[[], Iterator[Example]]


def write_battery(folder: Path, recipe: Recipe, layout: RunLayout, tokenizer: Tokenizer) -> None:
    """Write the battery's data and task files. Existing files are kept, so an interrupted build continues.

    Raises:
        RequestError: there are too few held-out documents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in _tasks(recipe, layout, tokenizer):
        path = folder / f"{task.name}.jsonl"
        if path.exists():
            continue
        lines = [json.dumps(example, ensure_ascii=False) for example in task.examples()]
        if not lines:
            raise RequestError(
                f"evaluate.tasks: {NAME} finds no examples for {task.name} in the held-out documents of "
                f"{layout.tokens}: set a larger data.tokens.validation_fraction, or choose other tasks"
            )
        atomic.write_text(path, "\n".join(lines) + "\n")
    for path in sorted(_TASK_FILES.iterdir()):
        if path.suffix in (".yaml", ".py"):
            atomic.write_text(folder / path.name, path.read_text(encoding="utf-8"))


def _tasks(recipe: Recipe, layout: RunLayout, tokenizer: Tokenizer) -> list[_Task]:
    seed = recipe.evaluate.seed
    texts = list(_held_out(layout, tokenizer))
    passages = Passages(texts, tokenizer, recipe.train.context_length)

    def task(name: str, make: Callable[..., Iterator[Example]], *more: Any) -> _Task:
        # Each task has its own generator, so that none depends on the others.
        rng = np.random.default_rng([seed, *name.encode()])
        return _Task(f"{NAME}_{name}", lambda: make(rng, _EXAMPLES, *more))

    return [
        _Task(f"{NAME}_text", lambda: ({"text": text} for text in texts[:_EXAMPLES])),
        task("cloze", questions.cloze, passages),
        task("continuation", questions.continuation, passages),
        task("needle", questions.needle, passages),
        task("copy", questions.copy, passages),
        task("arithmetic", questions.arithmetic),
        task("pydocs", questions.documentation, passages, _documentation(recipe)),
    ]


def _held_out(layout: RunLayout, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the text of the held-out documents, without empty ones."""
    count = 0
    for prefix in shard_prefixes(layout.tokens, "val"):
        shard = IndexedDataset(prefix)
        for number in range(min(len(shard), _DOCUMENTS - count)):
            if text := tokenizer.decode(shard.document(number).tolist()).strip():
                yield text
        count += len(shard)
        if count >= _DOCUMENTS:
            return


def _documentation(recipe: Recipe) -> Callable[[], Sequence[Any]]:
    source = PydocsSource.of(SourceSection(kind="pydocs", packages=tuple(_PACKAGES.split())), recipe)
    return lambda: list(source.documents(1))
