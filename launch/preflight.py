"""Checks that run before any process is started: data, disk, GPUs and memory."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from artefacts.errors import RequestError
from artefacts.manifest import require, require_sound
from artefacts.training_folder import TrainingRun, checkpoints
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from training.estimate.device import device_of, has_mps
from training.estimate.finetuning import finetuning_recipe
from training.estimate.fitting import advice
from training.estimate.memory import checkpoint_bytes, memory

#: The estimate is within 10% of the measured memory (benchmarks/results/estimate.md).
_TOLERANCE = 1.1


def preflight(recipe: Recipe, run: TrainingRun, layout: RunLayout, here: bool = True) -> list[str]:
    """Run all checks and return warnings, one line each. ``here`` is whether the run will use this node.

    Raises:
        RequestError: the run would fail.
    """
    run.check_replacing(recipe.run.may_replace(run.stage))
    if not run.begun():
        _check_data(recipe, run, layout)
    if here:
        check_gpus(recipe)
    stage = recipe.stage(run.name) if run.stage == "finetune" else None
    return [*_check_host_name(recipe), *check_memory(recipe, stage), *check_disk(recipe, run, layout)]


def _check_host_name(recipe: Recipe) -> list[str]:
    """Return a warning if there are several nodes and this host's name does not resolve."""
    if recipe.launch.nodes == 1:
        return []
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return [
            f"warning: this host's name, {socket.gethostname()}, does not resolve: other nodes get its address on the "
            "route to launch.rendezvous instead; if they cannot reach that, add the name to /etc/hosts"
        ]
    return []


def _check_data(recipe: Recipe, run: TrainingRun, layout: RunLayout) -> None:
    if recipe.task != "language_modeling":
        require_sound(layout.examples, "data")
        return
    require_sound(layout.tokens, "data")
    if run.stage == "finetune":
        require_sound(layout.examples_of(run.name), "examples")
    elif recipe.packs:
        require_sound(layout.packing, "data")


def check_gpus(recipe: Recipe) -> None:
    """Raise ``RequestError`` if this node has fewer GPUs than processes, or no device of the requested kind."""
    launch = recipe.launch
    if launch.device == "mps":
        if not has_mps():
            raise RequestError(
                "launch.device=mps, but this machine is not a Mac with Apple silicon: set launch.device=auto or cpu"
            )
        return
    if launch.device == "cpu" or os.environ.get("DS_ACCELERATOR") == "cpu":
        return
    count = visible_gpus()
    if count == 0 and launch.device == "cuda":
        raise RequestError("launch.device=cuda, but this node has no visible GPU: set launch.device=auto or cpu")
    if 0 < count < launch.processes:
        raise RequestError(
            f"launch.processes ({launch.processes}) exceeds the {count} GPUs of this node: lower it, or set "
            "launch.device=cpu"
        )


def visible_gpus() -> int:
    """Return the number of GPUs that child processes may use. Returns 0 if there is no driver."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    installed = sum(line.startswith("GPU ") for line in listed)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    return min(installed, len([name for name in visible.split(",") if name.strip() not in ("", "-1")]))


def check_memory(recipe: Recipe, stage: FinetuneSection | None = None) -> list[str]:
    """Return a warning if the estimated memory exceeds a process's limit. The warning recommends settings that fit.

    ``stage`` is the fine-tuning stage that will be trained, or None for pretraining.

    Raises:
        RequestError: the device is a GPU whose memory is known, and the estimate exceeds it by more than the tolerance.
    """
    device = device_of(recipe)
    estimated = memory(finetuning_recipe(recipe, stage) if stage else recipe, device.kind, stage=stage)
    if estimated.peak <= device.bytes:
        return []
    message = (
        f"a rank is estimated to need {_gigabytes(estimated.peak)} ({estimated.phase}), but may use "
        f"{_gigabytes(device.bytes)} ({device.source}): {advice(recipe, device.bytes, device.kind, stage)}"
    )
    if device.kind == "cuda" and device.known and estimated.peak > _TOLERANCE * device.bytes:
        raise RequestError(f"{message}; or set launch.device_memory if it may use more")
    return [f"warning: {message}"]


def check_disk(recipe: Recipe, run: TrainingRun, layout: RunLayout) -> list[str]:
    """Return a warning if the disk does not have enough space for all checkpoints that the run keeps.

    Raises:
        RequestError: there is not even space for a single checkpoint.
    """
    stage = recipe.stage(run.name) if run.stage == "finetune" else None
    size = checkpoint_bytes(recipe, stage)
    free = shutil.disk_usage(_nearest(run.folder)).free
    if free < size:
        raise RequestError(
            f"{run.folder}: a checkpoint takes {_gigabytes(size)}, but the disk has {_gigabytes(free)} free: free some "
            "space, or set run.root to another disk"
        )
    most = _most_checkpoints(recipe, stage, layout)
    missing = (most - len(checkpoints(run.folder))) * size
    if free < missing:
        return [
            f"warning: {run.folder}: the run keeps up to {most} checkpoints of {_gigabytes(size)}, but the disk has "
            f"{_gigabytes(free)} free: lower train.keep, or some will be dropped"
        ]
    return []


def _most_checkpoints(recipe: Recipe, stage: FinetuneSection | None, layout: RunLayout) -> int:
    """Return the largest number of checkpoints that exist at once while pretraining or a stage runs without a break."""
    train, steps, eval_every = recipe.train, recipe.train.steps, recipe.train.eval_every
    keeps_best = train.early_stopping is not None
    if stage:
        steps = stage.steps(require(layout.examples_of(stage.name), "examples").counts["train"]["examples"])
        eval_every, keeps_best = stage.validation_interval(steps), stage.keep_best
    # A run that ends with its best checkpoint may save one at every validation.
    intervals = [train.save_every, eval_every if keeps_best else 0]
    saved = {steps}.union(*(range(every, steps, every) for every in intervals if every))
    marked = sum(step % train.keep_every == 0 for step in saved) if train.keep_every else 0
    # The oldest checkpoint is removed only after the newest one is complete.
    return min(len(saved), train.keep + max(train.keep_best, int(keeps_best)) + marked + 1)


def check_writable(key: str, folder: Path) -> None:
    """Raise ``RequestError`` if ``folder``, the value of a recipe key, cannot be created or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(f"{key}: {folder} cannot be written: {error.strerror}") from None


def _nearest(folder: Path) -> Path:
    """Return the folder if it exists, or otherwise its nearest existing parent."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
