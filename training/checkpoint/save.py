"""Asynchronous saving: training waits only for a copy to host memory, and threads write the files in the background.

Every rank writes one file. When all files are written, rank 0 publishes the checkpoint: it adds the manifest and
renames the folder, so a checkpoint is either complete or does not exist. If a write fails, only that checkpoint is
lost.
"""

import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from artefacts import atomic, manifest
from artefacts.errors import RequestError, RunError
from artefacts.manifest import Manifest
from artefacts.progress import warn
from artefacts.training_folder import STEP_PREFIX, checkpoint_name, saved_steps
from training.checkpoint import tensor_file
from training.checkpoint.index import FORMAT, partial_folder_name, rank_file
from training.checkpoint.retention import Retention, superseded
from training.checkpoint.snapshot import Snapshot
from training.distributed.ranks import Ranks, broadcast_value, sum_over_ranks
from training.engine.partitions import Partitions

#: How the state in a checkpoint's files is sharded: ranks, expert_parallel, zero_stage, precision.
Topology = dict[str, int | str]


@dataclass(frozen=True)
class RunIdentity:
    """Facts about a run that are recorded in its checkpoints' manifests.

    Attributes:
        identity: the recipe keys that the run depends on.
        inputs: fingerprints of the artefacts that the run is trained on.
        model: the recipe's model keys, which determine whether weights fit a model.
        topology: the current topology; it may change when the run is resumed.
        run: entries for the finished run's manifest: ``stage``, ``steps``, ``parameters`` and, for imported weights,
            ``imported`` (the fingerprints of their files).
    """

    identity: dict[str, Any]
    inputs: dict[str, str]
    model: dict[str, Any]
    topology: Topology
    run: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Pending:
    """A checkpoint that is being written. ``entry`` is a future for the manifest entry of this rank's file."""

    step: int
    counts: dict[str, Any]
    state: dict[str, Any]
    entry: Future[dict[str, Any]]


class Saver:
    """Writes checkpoints, one at a time. Every rank must make the same calls."""

    def __init__(
        self,
        partitions: Partitions,
        folder: Path,
        identity: RunIdentity,
        ranks: Ranks,
        retention: Retention,
        resumed: int | None = None,
    ) -> None:
        """Remove incomplete checkpoints that a killed run left behind. Collective.

        Args:
            partitions: the partitions of the engine whose state is saved.
            folder: the run's ``checkpoints/`` folder. The caller holds the run's lock.
            identity: the facts about the run that are recorded in manifests.
            ranks: this process's position among the ranks that save.
            retention: which checkpoints to keep.
            resumed: the step of the checkpoint in ``folder`` that the run resumed from, if any. Later checkpoints in
                the folder could not be read; they are moved aside when the next checkpoint is published.
        """
        self._newest = resumed
        self._folder, self._identity, self._ranks, self._retention = folder, identity, ranks, retention
        self._snapshot = Snapshot(partitions, ranks.device, ranks.first)
        self._scaler_state = partitions.scaler_state
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._publishing: Future[None] | None = None
        self._failure = ""
        if ranks.first:
            for torn in folder.glob(f".{STEP_PREFIX}*"):
                shutil.rmtree(torn)
        dist.barrier()

    def begin(self, step: int, counts: dict[str, Any], state: dict[str, Any]) -> None:
        """Copy the state after ``step`` steps and start writing it. Waits first if a checkpoint is still being written.

        Args:
            step: optimizer steps done.
            counts: numbers for the manifest besides the step: ``samples``, and ``validation_loss`` (None if it was not
                measured).
            state: additional state to restore, as JSON values; the same on every rank.
        """
        if self._pending is not None:
            began = time.monotonic()
            self.drain()
            if self._ranks.first:
                waited = time.monotonic() - began
                warn(
                    f"step {step} waited {waited:.1f} s for the previous checkpoint: writing it took longer than the "
                    "steps between"
                )
        tensors, metadata = self._snapshot.take()
        entry = self._thread.submit(self._write, step, tensors, metadata)
        self._pending = _Pending(step, counts, {**state, "scaler": self._scaler_state()}, entry)

    def reduce_inputs(self) -> list[float]:
        """Return the numbers that this rank contributes to the sum over all ranks.

        The numbers are [1, 0] if the rank's file has been written, [0, 1] if writing failed, and [0, 0] otherwise.
        """
        if self._publishing is not None and self._publishing.done():
            self._finish_publishing()
        if self._pending is None or not self._pending.entry.done():
            return [0.0, 0.0]
        return [0.0, 1.0] if self._pending.entry.exception() else [1.0, 0.0]

    def on_reduced(self, sums: Sequence[float]) -> None:
        """Receive the sums over all ranks. If every rank has finished writing, publish the checkpoint or drop it."""
        if self._pending is not None and sum(sums) == self._ranks.size:
            self._publish_or_drop()

    def drain(self) -> str:
        """Wait until a pending checkpoint is published or dropped. Returns the error message, or "" on success."""
        if self._pending is not None:
            wait([self._pending.entry])
            self.on_reduced(sum_over_ranks(torch.tensor(self.reduce_inputs())).tolist())
        self._finish_publishing()
        return broadcast_value(self._failure)

    def finish(self) -> None:
        """Wait for the last checkpoint and stop the writer thread.

        Raises:
            RunError: the last checkpoint could not be written.
        """
        failure = self.drain()
        self._thread.shutdown()
        if failure:
            raise RunError(
                f"the last checkpoint could not be saved ({failure}). Fix that and run the same command again: it "
                "resumes from the newest complete checkpoint"
            )

    def _write(self, step: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, Any]:
        partial = self._partial(step)
        partial.mkdir(parents=True, exist_ok=True)
        return tensor_file.write(partial / rank_file(self._ranks.rank), tensors, metadata)

    def _partial(self, step: int) -> Path:
        return self._folder / partial_folder_name(step)

    def _publish_or_drop(self) -> None:
        """Let rank 0 publish the checkpoint, or drop it if any rank failed to write its file.

        Collective; called once every rank has finished or failed writing.
        """
        pending, self._pending = self._pending, None
        assert pending is not None
        error = pending.entry.exception()
        outcomes: list[Any] | None = [None] * self._ranks.size if self._ranks.first else None
        dist.gather_object(_describe(error) if error else pending.entry.result(), outcomes)
        self._finish_publishing()
        self._failure = ""
        if outcomes is None:
            return
        failures = [f"rank {rank}: {outcome}" for rank, outcome in enumerate(outcomes) if isinstance(outcome, str)]
        if failures:
            self._drop(pending.step, failures[0])
        else:
            files = {rank_file(rank): entry for rank, entry in enumerate(outcomes)}
            self._publishing = self._thread.submit(self._publish, pending, files)

    def _drop(self, step: int, failure: str) -> None:
        self._failure = failure
        newest = (
            "no checkpoint is on disk" if self._newest is None else f"the newest is {checkpoint_name(self._newest)}"
        )
        warn(
            f"the checkpoint at step {step} could not be written ({failure}) and was dropped; training continues, "
            f"{newest}"
        )
        shutil.rmtree(self._partial(step), ignore_errors=True)

    def _finish_publishing(self) -> None:
        """If rank 0 is publishing a checkpoint, wait until it is done. Warns if publishing failed."""
        publishing, self._publishing = self._publishing, None
        if publishing is not None and (error := publishing.exception()):
            self._failure = _describe(error)
            warn(f"a checkpoint could not be published ({self._failure}) and was dropped; training continues")

    def _publish(self, pending: _Pending, files: dict[str, dict[str, Any]]) -> None:
        try:
            self._rename(pending, files)
        except BaseException:
            # Remove only this checkpoint's folder: other ranks may already be writing the next one.
            shutil.rmtree(self._partial(pending.step), ignore_errors=True)
            raise
        self._delete_superseded()

    def _rename(self, pending: _Pending, files: dict[str, dict[str, Any]]) -> None:
        """Write the manifest, move unreadable later checkpoints aside, and give the folder its final name."""
        partial, target = self._partial(pending.step), self._folder / checkpoint_name(pending.step)
        manifest.write(
            partial,
            Manifest(
                stage="checkpoint",
                identity=self._identity.identity,
                inputs=self._identity.inputs,
                versions=manifest.versions("torch", "deepspeed"),
                counts={"step": pending.step, **pending.counts},
                files=files,
                details=manifest_details(self._identity, pending.state),
            ),
        )
        for step in saved_steps(self._folder):
            if self._newest is None or step > self._newest:
                aside = atomic.move_aside(self._folder / checkpoint_name(step))
                warn(f"{checkpoint_name(step)}, which was skipped, is now {aside}")
        atomic.rename_folder(partial, target)
        self._newest = pending.step

    def _delete_superseded(self) -> None:
        losses = {step: _validation_loss(self._folder / checkpoint_name(step)) for step in saved_steps(self._folder)}
        for step in superseded(losses, self._retention):
            doomed = self._folder / f".{checkpoint_name(step)}.superseded"
            try:
                # Rename first, so that a kill during deletion does not leave a damaged checkpoint.
                os.rename(self._folder / checkpoint_name(step), doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                warn(f"{checkpoint_name(step)} is superseded but could not be removed ({_describe(error)})")


def manifest_details(identity: RunIdentity, state: dict[str, Any]) -> dict[str, Any]:
    """Return the ``details`` of a checkpoint's manifest. ``state`` is the state passed to ``Saver.begin``."""
    return {
        "format": FORMAT,
        "topology": identity.topology,
        "model": identity.model,
        "run": identity.run,
        "state": state,
    }


def _validation_loss(folder: Path) -> float | None:
    try:
        saved = manifest.read(folder)
    except RequestError:  # damaged
        return None
    return None if saved is None else saved.counts.get("validation_loss")


def _describe(error: BaseException) -> str:
    return f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else repr(error)
