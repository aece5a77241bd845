"""Writes the results of evaluations as scalars for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Folder of the scalars in the log of evaluations. It has a folder for each stage.
FOLDER = "tensorboard"
_NUMBERS = ("loss", "perplexity", "bits_per_byte", "held_out_loss_after")


def scalars(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return a checkpoint's results by curve name."""
    values = {f"evaluation/{key}": facts[key] for key in _NUMBERS if facts.get(key) is not None}
    for text, row in facts.get("texts", {}).items():
        values |= {f"evaluation/{text}/{key}": row[key] for key in _NUMBERS if key in row}
    for task, row in facts.get("tasks", {}).items():
        values |= {f"tasks/{task}/{metric}": score["value"] for metric, score in row["metrics"].items()}
    return values


def write_scalars(log: Path, stage: str, results: Mapping[int, Mapping[str, Any]]) -> None:
    """Write a stage's results at the steps of its checkpoints, which are the keys of ``results``."""
    # TensorBoard is slow to import.
    from training.trainer.callbacks.tensorboard import TensorBoardWriter

    writer = TensorBoardWriter(log / FOLDER / stage, min(results, default=0))
    try:
        for step, facts in sorted(results.items()):
            writer.add(step, scalars(facts))
    finally:
        writer.close()
