"""What can be known before any process is started: does the run fit its data, its disk, its GPUs and their memory?"""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from artefacts.errors import RequestError
from artefacts.manifest import require_sound
from artefacts.training_folder import TrainingRun
from configs.run_layout import RunLayout
from configs.schema import Recipe
from training.estimate.device import device_of, has_mps
from training.estimate.fitting import advice
from training.estimate.memory import checkpoint_bytes, memory

#: The estimate is within a tenth of what was measured (benchmarks/results/estimate.md).
_SURELY = 1.1


def preflight(recipe: Recipe, run: TrainingRun, layout: RunLayout, here: bool = True) -> list[str]:
    """Look at everything; returns warnings, a line each. ``here``: this is one of the nodes that it will run on.

    Raises:
        RequestError: the run cannot go well.
    """
    run.check_replacing(recipe.run.may_replace(run.stage))
    if not run.begun():
        _check_data(recipe, run, layout)
    if here:
        check_gpus(recipe)
    return [*_own_name(recipe), *check_memory(recipe), *check_disk(recipe, run)]


def _own_name(recipe: Recipe) -> list[str]:
    """A line where nodes are to meet and this one's own name leads nowhere; one node needs no name."""
    if recipe.launch.nodes == 1:
        return []
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return [
            f"warning: this host's own name, {socket.gethostname()}, does not resolve: other nodes are given its "
            "address on the way to launch.rendezvous; if they cannot reach it, add the name to /etc/hosts"
        ]
    return []


def _check_data(recipe: Recipe, run: TrainingRun, layout: RunLayout) -> None:
    if recipe.task != "language_modeling":
        require_sound(layout.examples, "data")
        return
    require_sound(layout.tokens, "data")
    if run.stage == "finetune":
        require_sound(layout.examples, "examples")
    elif recipe.packs:
        require_sound(layout.packing, "data")


def check_gpus(recipe: Recipe) -> None:
    """Raise ``RequestError`` where this node has fewer GPUs than it is to have processes, or not the kind asked for."""
    launch = recipe.launch
    if launch.device == "mps":
        if not has_mps():
            raise RequestError(
                "launch.device=mps, and this machine is no Mac with Apple silicon: set launch.device=auto or cpu"
            )
        return
    if launch.device == "cpu" or os.environ.get("DS_ACCELERATOR") == "cpu":
        return
    count = visible_gpus()
    if count == 0 and launch.device == "cuda":
        raise RequestError("launch.device=cuda, and this node shows no GPU: set launch.device=auto or cpu")
    if 0 < count < launch.processes:
        raise RequestError(
            f"launch.processes ({launch.processes}) exceeds the {count} GPUs of this node: lower it, or set "
            "launch.device=cpu"
        )


def visible_gpus() -> int:
    """GPUs that processes started here may use; 0 where there is no driver."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    there = sum(line.startswith("GPU ") for line in listed)
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        there
        if chosen is None
        else min(there, len([name for name in chosen.split(",") if name.strip() not in ("", "-1")]))
    )


def check_memory(recipe: Recipe) -> list[str]:
    """A warning where the estimate is beyond what a process may use, with what would fit.

    Raises:
        RequestError: on GPUs whose memory is known it is so by more than the estimate is off.
    """
    device = device_of(recipe)
    found = memory(recipe, device.kind)
    if found.peak <= device.bytes:
        return []
    said = (
        f"a rank is estimated to take {_gigabytes(found.peak)} ({found.phase}), and may use "
        f"{_gigabytes(device.bytes)} ({device.source}): {advice(recipe, device.bytes, device.kind)}"
    )
    if device.kind == "cuda" and device.known and found.peak > _SURELY * device.bytes:
        raise RequestError(f"{said}; or, if it may use more, set launch.device_memory")
    return [f"warning: {said}"]


def check_disk(recipe: Recipe, run: TrainingRun) -> list[str]:
    """Whether checkpoints find room; a warning where not all that are kept do.

    Raises:
        RequestError: there is no room for a single one.
    """
    size, checkpoints = checkpoint_bytes(recipe), run.folder / "checkpoints"
    free = shutil.disk_usage(_nearest(run.folder)).free
    if free < size:
        raise RequestError(
            f"{run.folder}: a checkpoint takes {_gigabytes(size)}, the disk has {_gigabytes(free)} free: free some "
            "space, or set run.root to another disk"
        )
    train = recipe.train
    most = train.keep + train.keep_best + 1
    if train.save_every:
        most = min(most, train.steps // train.save_every + 1)
    missing = (most - len(list(checkpoints.glob("step-*")))) * size
    if free < missing:
        return [
            f"warning: {run.folder}: {most} checkpoints of {_gigabytes(size)} come to stand there at a time, the disk "
            f"has {_gigabytes(free)} free: lower train.keep, or some will be dropped"
        ]
    return []


def check_writable(key: str, folder: Path) -> None:
    """Raise ``RequestError`` where a folder that a key names cannot be made or written in."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(f"{key}: {folder} cannot be written: {error.strerror}") from None


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
