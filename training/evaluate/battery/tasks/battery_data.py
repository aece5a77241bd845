"""Reads a task's examples from the jsonl file next to this file. lm-eval calls it for every task of the battery."""

import json
from pathlib import Path
from typing import Any

import datasets


def load(task: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Return the examples of a task as its split ``test``."""
    lines = Path(__file__).with_name(f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
