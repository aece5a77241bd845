"""The life cycle of a training folder (``pretrain/``, ``finetune/NAME/``). A run can resume only in its own folder.

Unlike a data artefact, the folder is written in place, because a killed run resumes from its checkpoints.
``identity.json`` is written at the start, and ``manifest.json`` at the end. If either file is lost, it is restored from
a checkpoint's manifest.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artefacts import atomic, manifest
from artefacts.differences import explained
from artefacts.errors import RequestError
from artefacts.manifest import DamagedError, Manifest, OtherFormatError

IDENTITY = "identity.json"
#: The subfolder with the checkpoints.
CHECKPOINTS = "checkpoints"
#: Prefix of the checkpoints' names, before the step.
STEP_PREFIX = "step-"
#: Key of a checkpoint's counts, and of a finished run's details, that says that training ended before its last step.
STOPPED_EARLY = "stopped_early"
#: Key of a checkpoint's run that says that the run ends with its checkpoint with the lowest validation loss.
KEEP_BEST = "keep_best"
#: The stages of training. Each is a make target and a command that launchers start.
STAGES = ("pretrain", "finetune")
#: Environment variable that is set in all jobs of a chain (``launch.slurm.train.chain``) except the first.
LATER_IN_CHAIN = "MILLRACE_LATER_IN_CHAIN"


@dataclass(frozen=True)
class TrainingRun:
    """A recipe's training run.

    Attributes:
        stage: ``pretrain`` or ``finetune``.
        folder: the folder with the run's checkpoints and metrics.
        identity: the recipe keys that define the run. Changing any of them defines a different run.
        inputs: fingerprints of the artefacts that the run is trained on.
        name: ``pretrain``, or the fine-tuning stage's name.
    """

    stage: str
    folder: Path
    identity: dict[str, Any]
    inputs: dict[str, str]
    name: str = "pretrain"

    @property
    def label(self) -> str:
        """What messages call the run: ``pretrain``, ``finetune`` or, for a stage of another name, ``finetune NAME``."""
        return self.stage if self.name in ("pretrain", "sft") else f"{self.stage} {self.name}"

    @property
    def key(self) -> str:
        return manifest.stage_key(self.identity, self.inputs)

    @property
    def stacks(self) -> Path:
        """Folder for the stack traces that ranks write when a run hangs."""
        return self.folder / "stacks"

    def manifest(self) -> Manifest | None:
        """Return the finished run's manifest, or None if the run is not finished or the folder holds another run.

        A run is not finished if any of its weight files is missing or has the wrong size.
        """
        saved = finished(self.folder)
        if saved is None or saved.key != self.key:
            return None
        last = self.folder / CHECKPOINTS / saved.details["checkpoint"]
        try:
            return None if manifest.faults(last, content=False) else saved
        except RequestError:
            return None

    def begun(self) -> bool:
        """Return whether the folder holds this run, finished or not."""
        recorded = read_identity(self.folder)
        return bool(recorded) and manifest.stage_key(recorded["identity"], recorded["inputs"]) == self.key

    def check_replacing(self, replace: bool) -> None:
        """Check that this run may use the folder.

        Args:
            replace: whether another run may be moved aside (``run.replace``).

        Raises:
            RequestError: the folder has another run's weights, and they may not be moved aside.
        """
        # A job that SLURM starts again only resumes what it has begun. It may not have come to the stages that follow.
        may_move = replace and (not is_requeued() or self._has_other_start())
        if self.begun() or not has_weights(self.folder) or may_move:
            return
        value = "finetune" if self.stage == "finetune" else "true"
        fix = f"give this run another name (run.name=…), or move the other one aside (run.replace={value})"
        if replace:
            fix = "a job that SLURM starts again only resumes: use the keys that it started with, or submit it again"
        raise RequestError(f"{self.folder} holds another run ({self._difference()}): {fix}")

    def _has_other_start(self) -> bool:
        """Return whether the folder holds a run that started from other weights: an earlier stage was trained again."""
        start = read_identity(self.folder).get("inputs", {}).get("weights")
        return start is not None and start != self.inputs.get("weights")

    def open(self, recipe_text: str, replace: bool) -> None:
        """Prepare the folder for starting or resuming.

        If it holds another run that may be replaced, move that run aside and print a message.

        Raises:
            RequestError: the folder has another run's weights, and they may not be moved aside.
        """
        self.check_replacing(replace)
        if self.folder.exists() and not self.begun() and any(self.folder.iterdir()):
            why = self._difference()
            print(f"{self.folder}: another run ({why}), moved aside to {atomic.move_aside(self.folder)}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.folder / "recipe.yaml", recipe_text)
        self._write_identity()

    def finish(self, checkpoint: Path) -> Manifest:
        """Write the manifest of the finished run. ``checkpoint`` is its last one.

        The manifest names the checkpoint that later steps use: the last one, or the best one if the run keeps it. It
        lists no files, because checkpoints have their own manifests and logs can still grow.
        """
        saved = manifest.require(checkpoint, self.stage)
        final = _finished_by(self.folder, checkpoint, saved)
        manifest.write(self.folder, final)
        return final

    def restore(self) -> list[str]:
        """Restore the files that a machine crash left missing or damaged. Returns a line about each of them.

        If training is not finished, a damaged manifest is removed instead.

        Raises:
            RequestError: another version of Millrace wrote the manifest.
        """
        lines: list[str] = []
        if not self.begun():
            return lines
        if read_identity_file(self.folder) is None:
            self._write_identity()
            lines.append(f"{self.folder / IDENTITY} was missing or damaged: restored from a checkpoint")
        path = self.folder / manifest.NAME
        try:
            fault = "" if manifest.read(self.folder) else f"{path} was missing"
        except DamagedError as error:
            fault = error.fault
        except OtherFormatError:
            finished(self.folder)  # raises an error that says what to do
            raise
        if fault and (final := _by_last_checkpoint(self.folder)):
            manifest.write(self.folder, final)
            lines.append(f"{fault}: restored from {CHECKPOINTS}/{final.details['checkpoint']}")
        elif fault and path.exists() and has_weights(self.folder):
            path.unlink()
            lines.append(f"{fault}: removed, because the training is not finished")
        return lines

    def _write_identity(self) -> None:
        atomic.write_json(self.folder / IDENTITY, {"identity": self.identity, "inputs": self.inputs})

    def _difference(self) -> str:
        recorded = read_identity(self.folder)
        if not recorded:
            return f"{IDENTITY} and the checkpoints' manifests cannot be read"
        return explained(recorded["identity"], recorded["inputs"], self.identity, self.inputs)


def is_requeued() -> bool:
    """Return whether SLURM has restarted this job, or has already run an earlier job in the same chain."""
    return os.environ.get("SLURM_RESTART_COUNT", "") not in ("", "0") or LATER_IN_CHAIN in os.environ


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint saved after ``step`` optimizer steps."""
    return f"{STEP_PREFIX}{step:08d}"


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a ``checkpoints/`` folder, in ascending order. Other files are ignored."""
    numbers = [path.name.removeprefix(STEP_PREFIX) for path in folder.glob(f"{STEP_PREFIX}*")]
    steps = {int(number) for number in numbers if number.isascii() and number.isdigit()}
    return sorted(step for step in steps if (folder / checkpoint_name(step)).is_dir())


def checkpoints(folder: Path) -> list[Path]:
    """List a training folder's checkpoints, oldest first."""
    return [folder / CHECKPOINTS / checkpoint_name(step) for step in saved_steps(folder / CHECKPOINTS)]


def has_weights(folder: Path) -> bool:
    """Return whether a training folder has a checkpoint: imported or trained, complete or incomplete."""
    return bool(checkpoints(folder))


def read_identity(folder: Path) -> dict[str, Any]:
    """Return the ``identity`` and ``inputs`` of the run in a folder.

    They are read from ``identity.json`` or, if it is missing or damaged, from the newest readable checkpoint. The
    result is empty if neither can be read.
    """
    if (recorded := read_identity_file(folder)) is not None:
        return recorded
    saved = next((loaded for _, loaded in _readable_checkpoints(folder)), None)
    return {"identity": saved.identity, "inputs": saved.inputs} if saved else {}


def finished(folder: Path) -> Manifest | None:
    """Return a finished run's manifest, derived from its checkpoints if ``manifest.json`` is damaged.

    Returns:
        The manifest, or None if the run is not finished.

    Raises:
        RequestError: another version of Millrace wrote the manifest.
        DamagedError: the manifest is damaged, and there is no checkpoint.
    """
    try:
        loaded = manifest.read(folder)
    except DamagedError as error:
        if not has_weights(folder):
            raise DamagedError(error.fault, f"this training has no checkpoint left: move {folder} away") from None
        return _by_last_checkpoint(folder)
    except OtherFormatError as error:
        raise RequestError(
            f"{error.fault}: use the version that wrote it, or remove the file: it is restored from the checkpoints"
        ) from None
    return loaded if loaded is not None and loaded.stage in STAGES else None


def _by_last_checkpoint(folder: Path) -> Manifest | None:
    """Derive a run's manifest from its newest readable checkpoint, or return None if training did not end there."""
    for checkpoint, saved in _readable_checkpoints(folder):
        run = saved.details.get("run")
        is_last = run and (saved.counts["step"] == run["steps"] or STOPPED_EARLY in saved.counts)
        return _finished_by(folder, checkpoint, saved) if is_last else None
    return None


def _finished_by(folder: Path, checkpoint: Path, saved: Manifest) -> Manifest:
    """Derive a run's manifest from its last checkpoint, whose own manifest is ``saved``.

    The result depends only on the checkpoints, so a lost manifest is restored exactly.
    """
    run = saved.details["run"]
    best = _best(folder, saved.key) if run.get(KEEP_BEST) else None
    used, weights = best or (checkpoint, saved)
    details = {
        "checkpoint": used.name,
        "weights": weights.fingerprint,
        "topology": saved.details["topology"],
        **{key: value for key, value in run.items() if key not in ("stage", "steps", KEEP_BEST)},
        **({STOPPED_EARLY: True} if STOPPED_EARLY in saved.counts else {}),
    }
    counts = {"steps": saved.counts["step"]}
    return Manifest(run["stage"], saved.identity, saved.inputs, saved.versions, counts, {}, details)


def _best(folder: Path, key: str) -> tuple[Path, Manifest] | None:
    """Return the checkpoint of run ``key`` with the lowest validation loss, and its manifest; the earliest of equals.

    Damaged checkpoints, and checkpoints without a finite loss, do not count. Returns None if there is no other.
    """
    best: tuple[Path, Manifest] | None = None
    lowest = math.inf
    for checkpoint, saved in reversed(list(_readable_checkpoints(folder))):
        loss = saved.counts.get("validation_loss")
        if saved.key != key or loss is None or not loss < lowest or manifest.faults(checkpoint, content=False):
            continue
        best, lowest = (checkpoint, saved), loss
    return best


def _readable_checkpoints(folder: Path) -> Iterator[tuple[Path, Manifest]]:
    """Yield (checkpoint, manifest) for the checkpoints with a readable manifest, newest first."""
    for checkpoint in reversed(checkpoints(folder)):
        try:
            saved = manifest.read(checkpoint)
        except RequestError:
            continue
        if saved is not None:
            yield checkpoint, saved


def read_identity_file(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``identity.json``, or None if it is missing or damaged."""
    try:
        recorded = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(recorded, dict) and all(isinstance(recorded.get(key), dict) for key in ("identity", "inputs"))
    return recorded if complete else None
