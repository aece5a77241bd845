"""A training folder with small checkpoints, without a model."""

from pathlib import Path
from typing import Any

from artefacts import manifest
from artefacts.manifest import Manifest
from artefacts.training_folder import TrainingRun


def begun(root: Path, stage: str = "pretrain", inputs: dict[str, str] | None = None, **identity: Any) -> TrainingRun:
    """A run whose folder is open: pretraining, or a fine-tuning stage called sft."""
    identity = {"train": {"steps": 4, **identity}}
    run = TrainingRun("pretrain", root / "pretrain", identity, inputs or {"tokens": "t"})
    if stage == "finetune":
        identity["start_from"] = "pretrain"
        run = TrainingRun("finetune", root / "finetune" / "sft", identity, inputs or {"tokens": "t"}, "sft")
    run.open("recipe", replace=True)
    return run


def saved(run: TrainingRun, step: int, counts: dict[str, Any] | None = None, **details: Any) -> Path:
    """A checkpoint of the run after ``step`` steps, with further counts and details of its run."""
    folder = run.folder / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "rank-00000.safetensors").write_text(f"weights {step} {details}")
    about = {
        "stage": run.stage,
        "name": run.name,
        "steps": run.identity["train"]["steps"],
        "parameters": {"total": 9, "active": 9},
    }
    published = Manifest(
        "checkpoint",
        run.identity,
        run.inputs,
        {"torch": "2"},
        {"step": step, **(counts or {})},
        manifest.describe_files(folder),
        {"topology": {"ranks": 1}, "run": about | details},
    )
    manifest.write(folder, published)
    return folder
