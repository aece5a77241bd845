"""Save without stopping: a step waits for the copy to host memory; threads write, and the whole is published after.

Every rank writes one file. When all have, rank 0 adds the manifest and gives the folder its name: before, there is no
checkpoint, after, a whole one. A write that fails costs this checkpoint and nothing else.
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
from training.checkpoint import tensor_file
from training.checkpoint.index import FORMAT, folder_name, rank_file, saved_steps
from training.checkpoint.retention import Retention, superseded
from training.checkpoint.snapshot import Snapshot
from training.distributed.ranks import Ranks, broadcast_value, sum_over_ranks
from training.engine.partitions import Partitions

#: How a checkpoint's files were cut: ranks, expert_parallel, zero_stage, precision.
Topology = dict[str, int | str]


@dataclass(frozen=True)
class About:
    """What a run's checkpoints say of it in their manifests.

    Attributes:
        identity: the recipe keys that the run depends on.
        inputs: fingerprints of what it learns from.
        model: the keys of the model, which say whether weights fit.
        topology: of this start of it.
        run: what the manifest of the finished run will say: ``stage``, ``steps``, ``parameters``, and of weights that
            were not trained here ``imported``, the fingerprints of their files.
    """

    identity: dict[str, Any]
    inputs: dict[str, str]
    model: dict[str, Any]
    topology: Topology
    run: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Begun:
    """A checkpoint that is being written; ``entry`` becomes this rank's file's entry in the manifest."""

    step: int
    counts: dict[str, Any]
    state: dict[str, Any]
    entry: Future[dict[str, Any]]


class Saver:
    """Writes one checkpoint at a time; every rank calls its methods alike."""

    def __init__(
        self,
        partitions: Partitions,
        folder: Path,
        about: About,
        ranks: Ranks,
        retention: Retention,
        resumed: int | None = None,
    ) -> None:
        """Remove what a killed run left half written.

        Args:
            partitions: of the engine whose state is saved.
            folder: ``checkpoints/`` of the run, of which this rank's process group holds the lock.
            about: what manifests say of the run.
            ranks: all that save.
            retention: what to keep.
            resumed: the step of the checkpoint in ``folder`` that the run goes on from, if any. Later ones there were
                passed over, perhaps as another version's: they are moved aside when the next one is published.
        """
        self._newest = resumed
        self._folder, self._about, self._ranks, self._retention = folder, about, ranks, retention
        self._snapshot = Snapshot(partitions, ranks.device, ranks.first)
        self._scaler_state = partitions.scaler_state
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._begun: _Begun | None = None
        self._publishing: Future[None] | None = None
        self._failure = ""
        if ranks.first:
            for torn in folder.glob(".step-*"):
                shutil.rmtree(torn)
        dist.barrier()

    def begin(self, step: int, counts: dict[str, Any], state: dict[str, Any]) -> None:
        """Copy the state after ``step`` steps and have it written; waits for a checkpoint still being written.

        Args:
            step: optimiser steps done.
            counts: numbers for the manifest beside the step: samples, and ``validation_loss`` where it was measured.
            state: our own, the same on every rank, as JSON's values.
        """
        if self._begun is not None:
            began = time.monotonic()
            self.drain()
            if self._ranks.first:
                waited = time.monotonic() - began
                warn(f"the checkpoint before step {step} took longer than the steps between: waited {waited:.1f} s")
        tensors, metadata = self._snapshot.take()
        entry = self._thread.submit(self._write, step, tensors, metadata)
        self._begun = _Begun(step, counts, {**state, "scaler": self._scaler_state()}, entry)

    def poll(self) -> list[float]:
        """[1, 0] when this rank's file is written, [0, 1] when that failed, else [0, 0]: to be summed over ranks."""
        if self._publishing is not None and self._publishing.done():
            self._note_published()
        if self._begun is None or not self._begun.entry.done():
            return [0.0, 0.0]
        return [0.0, 1.0] if self._begun.entry.exception() else [1.0, 0.0]

    def polled(self, sums: Sequence[float]) -> None:
        """Take note of the sum over all ranks; when no file is outstanding, publish the checkpoint, or drop it."""
        if self._begun is not None and sum(sums) == self._ranks.size:
            self._settle()

    def drain(self) -> str:
        """Wait until what was begun is published or dropped; returns what went wrong, empty: nothing."""
        if self._begun is not None:
            wait([self._begun.entry])
            self.polled(sum_over_ranks(torch.tensor(self.poll())).tolist())
        self._note_published()
        return broadcast_value(self._failure)

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            RunError: it could not be written.
        """
        failure = self.drain()
        self._thread.shutdown()
        if failure:
            raise RunError(
                f"the last checkpoint could not be saved ({failure}): mend that and give the same command, which goes "
                "on from the newest whole one"
            )

    def _write(self, step: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> dict[str, Any]:
        partial = self._partial(step)
        partial.mkdir(parents=True, exist_ok=True)
        return tensor_file.write(partial / rank_file(self._ranks.rank), tensors, metadata)

    def _partial(self, step: int) -> Path:
        return self._folder / f".{folder_name(step)}.partial"

    def _settle(self) -> None:
        """All ranks' files are written, or some failed: rank 0 publishes or drops; the rest forget."""
        begun, self._begun = self._begun, None
        assert begun is not None
        error = begun.entry.exception()
        told: list[Any] | None = [None] * self._ranks.size if self._ranks.first else None
        dist.gather_object(_told(error) if error else begun.entry.result(), told)
        self._note_published()
        self._failure = ""
        if told is None:
            return
        failed = [(rank, word) for rank, word in enumerate(told) if isinstance(word, str)]
        if failed:
            rank, word = failed[0]
            self._failure = f"rank {rank}: {word}"
            kept = (
                "with none on disk" if self._newest is None else f"the newest whole one is {folder_name(self._newest)}"
            )
            warn(
                f"the checkpoint at step {begun.step} could not be written ({self._failure}) and is dropped; training "
                f"goes on, {kept}"
            )
            shutil.rmtree(self._partial(begun.step), ignore_errors=True)
            return
        files = {rank_file(rank): entry for rank, entry in enumerate(told)}
        self._publishing = self._thread.submit(self._publish, begun, files)

    def _note_published(self) -> None:
        """Wait for what rank 0 publishes, and say so where that failed."""
        publishing, self._publishing = self._publishing, None
        if publishing is not None and (error := publishing.exception()):
            self._failure = _told(error)
            warn(f"a checkpoint could not be published ({self._failure}) and is dropped; training goes on")

    def _publish(self, begun: _Begun, files: dict[str, dict[str, Any]]) -> None:
        try:
            self._give_name(begun, files)
        except BaseException:
            # This one alone: other ranks may be writing the next already.
            shutil.rmtree(self._partial(begun.step), ignore_errors=True)
            raise
        self._retain()

    def _give_name(self, begun: _Begun, files: dict[str, dict[str, Any]]) -> None:
        partial, target = self._partial(begun.step), self._folder / folder_name(begun.step)
        about = self._about
        manifest.write(
            partial,
            Manifest(
                stage="checkpoint",
                identity=about.identity,
                inputs=about.inputs,
                versions=manifest.versions("torch", "deepspeed"),
                counts={"step": begun.step, **begun.counts},
                files=files,
                details=details(about, begun.state),
            ),
        )
        for step in saved_steps(self._folder):
            if self._newest is None or step > self._newest:
                aside = atomic.move_aside(self._folder / folder_name(step))
                warn(f"{folder_name(step)}, which was passed over, is now {aside}")
        atomic.rename_folder(partial, target)
        self._newest = begun.step

    def _retain(self) -> None:
        losses = {step: _validation_loss(self._folder / folder_name(step)) for step in saved_steps(self._folder)}
        for step in superseded(losses, self._retention):
            going = self._folder / f".{folder_name(step)}.superseded"
            try:
                os.rename(self._folder / folder_name(step), going)  # killed from here on, it is none and not a torn one
                shutil.rmtree(going)
            except OSError as error:
                warn(f"{folder_name(step)} should make room and could not be removed ({_told(error)})")


def details(about: About, state: dict[str, Any]) -> dict[str, Any]:
    """Details of a checkpoint's manifest; ``state``: our own."""
    return {
        "format": FORMAT,
        "topology": about.topology,
        "model": about.model,
        "run": about.run,
        "state": state,
    }


def _validation_loss(folder: Path) -> float | None:
    try:
        found = manifest.read(folder)
    except RequestError:  # damaged
        return None
    return None if found is None else found.counts.get("validation_loss")


def _told(error: BaseException) -> str:
    return f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else repr(error)
