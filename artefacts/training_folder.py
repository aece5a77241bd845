"""The life of a training folder (``pretrain/``, ``finetune/``): the same identity resumes, another is refused.

Unlike a data artefact it is written in place, since its checkpoints are what a killed run comes back from. Its
``identity.json`` says what it is from the first step on, its ``manifest.json`` that it is finished. Both can be lost:
every checkpoint's own manifest says the same, and they are written again from there.
"""

import json
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
#: Set by all but the first job of a chain (``launch.slurm.train.chain``): other arrays of jobs are their users' own.
LATER_IN_CHAIN = "MILLRACE_LATER_IN_CHAIN"


@dataclass(frozen=True)
class TrainingRun:
    """What a training folder is asked to hold.

    Attributes:
        stage: ``pretrain`` or ``finetune``.
        folder: where its checkpoints and metrics lie.
        identity: recipe keys that make it another run when they change.
        inputs: fingerprints of the artefacts it learns from.
    """

    stage: str
    folder: Path
    identity: dict[str, Any]
    inputs: dict[str, str]

    @property
    def key(self) -> str:
        return manifest.stage_key(self.identity, self.inputs)

    @property
    def stacks(self) -> Path:
        """Where ranks write down where they stand when a run stands still."""
        return self.folder / "stacks"

    def manifest(self) -> Manifest | None:
        """The manifest of the finished run with this identity, else None.

        Without its weights, or where a look at their files' sizes tells that they are damaged, it is not finished.
        """
        saved = finished(self.folder)
        if saved is None or saved.key != self.key:
            return None
        try:
            return None if manifest.faults(self.folder / "checkpoints" / saved.details["checkpoint"], False) else saved
        except RequestError:
            return None

    def begun(self) -> bool:
        """Whether the folder holds this run, finished or not."""
        recorded = read_identity(self.folder)
        return bool(recorded) and manifest.stage_key(recorded["identity"], recorded["inputs"]) == self.key

    def check_replacing(self, replace: bool) -> None:
        """Whether this run may take the folder.

        Args:
            replace: another run that is there may be moved aside (``run.replace``).

        Raises:
            RequestError: it holds weights of another run, and may not be moved aside.
        """
        if self.begun() or not has_weights(self.folder) or (replace and not is_requeued()):
            return
        wish = "finetune" if self.stage == "finetune" else "true"
        cure = (
            f"give this run another name (run.name=…), or move the other one aside (run.replace={wish}) and start again"
        )
        if replace:
            cure = (
                "a job that SLURM starts again only resumes: give back the keys that it began with, or submit it again"
            )
        raise RequestError(f"{self.folder} holds another run ({self._difference()}): {cure}")

    def open(self, recipe_text: str, replace: bool) -> None:
        """Make the folder ready to begin or resume; another run that may go is moved aside and the move printed.

        Raises:
            RequestError: as ``check_replacing``.
        """
        self.check_replacing(replace)
        if self.folder.exists() and not self.begun() and any(self.folder.iterdir()):
            why = self._difference()
            print(f"{self.folder}: another run ({why}), moved aside to {atomic.move_aside(self.folder)}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self.folder / "recipe.yaml", recipe_text)
        self._write_identity()

    def finish(self, checkpoint: Path) -> Manifest:
        """Write the manifest: the run is finished, with this checkpoint's weights.

        It lists no files: checkpoints have manifests, logs go on growing.
        """
        saved = manifest.require(checkpoint, self.stage)
        final = _finished_by(checkpoint, saved)
        manifest.write(self.folder, final)
        return final

    def restore(self) -> list[str]:
        """Write again what a crash of the machine left empty or torn; a line for each file.

        Raises:
            RequestError: the manifest is of another version of Millrace.
        """
        lines: list[str] = []
        if not self.begun():
            return lines
        if own_identity(self.folder) is None:
            self._write_identity()
            lines.append(f"{self.folder / IDENTITY} was missing or damaged: written again from a checkpoint")
        path = self.folder / manifest.NAME
        try:
            fault = "" if manifest.read(self.folder) else f"{path} was missing"
        except DamagedError as error:
            fault = error.fault
        except OtherFormatError:
            finished(self.folder)  # says what to do
            raise
        if fault and (final := _by_last_checkpoint(self.folder)):
            manifest.write(self.folder, final)
            lines.append(f"{fault}: written again from checkpoints/{final.details['checkpoint']}")
        elif fault and path.exists() and has_weights(self.folder):
            path.unlink()
            lines.append(f"{fault}: removed, as the training is not finished")
        return lines

    def _write_identity(self) -> None:
        atomic.write_json(self.folder / IDENTITY, {"identity": self.identity, "inputs": self.inputs})

    def _difference(self) -> str:
        recorded = read_identity(self.folder)
        if not recorded:
            return f"{IDENTITY} and the checkpoints' manifests cannot be read"
        return explained(recorded["identity"], recorded["inputs"], self.identity, self.inputs)


def is_requeued() -> bool:
    """Whether SLURM has started this job before, or one before it in a chain of ours."""
    return os.environ.get("SLURM_RESTART_COUNT", "") not in ("", "0") or LATER_IN_CHAIN in os.environ


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training folder, the oldest first."""
    numbered = [path for path in (folder / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    return sorted((path for path in numbered if path.is_dir()), key=lambda path: int(path.name[5:]))


def has_weights(folder: Path) -> bool:
    """Whether a training folder has a checkpoint, imported or trained, complete or not."""
    return bool(checkpoints(folder))


def read_identity(folder: Path) -> dict[str, Any]:
    """``identity`` and ``inputs`` of the run in a folder, by its newest checkpoint where its own file is damaged.

    Empty: nothing there says.
    """
    if (recorded := own_identity(folder)) is not None:
        return recorded
    saved = next((loaded for _, loaded in _readable_checkpoints(folder)), None)
    return {"identity": saved.identity, "inputs": saved.inputs} if saved else {}


def finished(folder: Path) -> Manifest | None:
    """The manifest of a finished training, by its last checkpoint where its own is damaged; None: it is not finished.

    Raises:
        RequestError: the manifest is of another version of Millrace.
        DamagedError: it is damaged, and no checkpoint is there.
    """
    try:
        loaded = manifest.read(folder)
    except DamagedError as error:
        if not has_weights(folder):
            raise DamagedError(error.fault, f"no checkpoint is left of this training: move {folder} away") from None
        return _by_last_checkpoint(folder)
    except OtherFormatError as error:
        raise RequestError(
            f"{error.fault}: use the one that made it, or remove that file: it is written again from the checkpoints"
        ) from None
    return loaded if loaded is not None and loaded.stage in ("pretrain", "finetune") else None


def _by_last_checkpoint(folder: Path) -> Manifest | None:
    """The manifest of a training whose newest checkpoint is its last; None: it is not."""
    for checkpoint, saved in _readable_checkpoints(folder):
        is_last = bool(saved.details.get("run")) and saved.counts["step"] == saved.details["run"]["steps"]
        return _finished_by(checkpoint, saved) if is_last else None
    return None


def _finished_by(checkpoint: Path, saved: Manifest) -> Manifest:
    """What a training folder's manifest says whose last checkpoint this is."""
    run = saved.details["run"]
    details = {
        "checkpoint": checkpoint.name,
        "weights": saved.fingerprint,
        "topology": saved.details["topology"],
        **{key: value for key, value in run.items() if key not in ("stage", "steps")},
    }
    return Manifest(run["stage"], saved.identity, saved.inputs, saved.versions, {"steps": run["steps"]}, {}, details)


def _readable_checkpoints(folder: Path) -> Iterator[tuple[Path, Manifest]]:
    """(checkpoint, manifest) of those whose manifest can be read, the newest first."""
    for checkpoint in reversed(checkpoints(folder)):
        try:
            saved = manifest.read(checkpoint)
        except RequestError:
            continue
        if saved is not None:
            yield checkpoint, saved


def own_identity(folder: Path) -> dict[str, Any] | None:
    """``identity.json``; None: it is not there, or is damaged."""
    try:
        recorded = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(recorded, dict) and all(isinstance(recorded.get(key), dict) for key in ("identity", "inputs"))
    return recorded if complete else None
