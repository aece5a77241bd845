"""The life cycle of a data artefact: skip it if it is finished, resume an interrupted build, publish it atomically.

A build lives in the folder ``.NAME.partial`` next to its target. The folder contains ``key`` (identifies what is being
built), ``work/`` (files to publish) and ``scratch/`` (files that only a resumed build needs). Files are written
atomically (with ``atomic.write_bytes`` or a rename), so a resumed build keeps the files that exist. ``publish`` writes
the manifest, renames ``work/`` to the target, and removes the build folder. A killed build loses no finished files.

A command that fails its checks before it has written a file leaves nothing behind. An artefact that was built from
another recipe or other inputs is never overwritten. It is moved aside, and the differences are printed.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artefacts import atomic, lock, manifest, repair_hints
from artefacts.differences import explained
from artefacts.errors import RequestError
from artefacts.manifest import Manifest


@dataclass
class Stage:
    """A build of an artefact. See ``open_stage``.

    Attributes:
        name: the artefact's name.
        target: the artefact's folder.
        work: folder for the files to publish. When an interrupted build resumes, it contains the files written so far.
        scratch: folder for intermediate files. It is kept like ``work`` but never published.
        identity: the recipe keys that the artefact depends on.
        inputs: fingerprints of everything that it is built from.
        finished: whether the artefact is up to date, so that there is nothing to do.
    """

    name: str
    target: Path
    work: Path
    scratch: Path
    identity: dict[str, Any]
    inputs: dict[str, str]
    finished: bool

    def publish(
        self, counts: dict[str, Any], versions: dict[str, str], details: dict[str, Any] | None = None
    ) -> Manifest:
        """Write a manifest for the files in ``work``, and rename the folder to the target."""
        published = Manifest(
            stage=self.name,
            identity=self.identity,
            inputs=self.inputs,
            versions=versions,
            counts=counts,
            files=manifest.describe_files(self.work),
            details=details or {},
        )
        manifest.write(self.work, published)
        if self.target.exists() and any(self.target.iterdir()):
            print(f"{self.target}: moved aside to {atomic.move_aside(self.target)}")
        atomic.rename_folder(self.work, self.target)
        shutil.rmtree(self.work.parent)
        return published


_KEY = "key"


@contextmanager
def open_stage(
    name: str,
    target: Path,
    identity: dict[str, Any],
    inputs: dict[str, str],
    shared: bool = False,
    check_replacing: Callable[[str], None] | None = None,
) -> Iterator[Stage]:
    """Start or resume a build of ``target``, and hold its lock.

    Args:
        name: the artefact's name.
        target: the artefact's folder.
        identity: the recipe keys that the artefact depends on.
        inputs: fingerprints of everything that it is built from.
        shared: whether several tasks build the artefact together.
        check_replacing: called with the differences before a different artefact at ``target`` is replaced.

    Raises:
        RequestError: another process is building it; ``shared`` is set, and tasks with another recipe or other inputs
            are building it; a file of the finished artefact is missing or has the wrong size; or ``check_replacing``
            raises this error.
    """
    building = _Building(name, target, identity, inputs, check_replacing)
    partial = building.partial
    if not shared and building.finished() and not partial.exists():
        # Nothing is written, so no lock is needed, and the folder may belong to another user.
        repair_hints.check_sizes(name, target)
        yield building.stage(done=True)
        return
    if target.is_mount():
        raise RequestError(
            f"{target}: a disk is mounted there, and a folder cannot be renamed to another disk: link to a folder on "
            "that disk, or set run.root or data.root to one"
        )
    with lock.share(target, building.prepare) if shared else lock.hold(target):
        if not shared:
            building.prepare()
        done = building.finished()
        if not done and _begun(partial) != building.key:
            raise RequestError(f"{target}: tasks of another recipe or source are running: wait for them")
        if done:
            repair_hints.check_sizes(name, target)
        try:
            yield building.stage(done)
        except RequestError:
            # If the stage is shared, other tasks may be about to write their first file there.
            if not (done or shared or _holds_work(partial)):
                shutil.rmtree(partial)
            raise


class _Building:
    """The build that ``open_stage`` starts or resumes."""

    def __init__(
        self,
        name: str,
        target: Path,
        identity: dict[str, Any],
        inputs: dict[str, str],
        check_replacing: Callable[[str], None] | None,
    ) -> None:
        self._name, self._target, self._identity, self._inputs = name, target, identity, inputs
        self._check_replacing = check_replacing
        self.partial = target.parent / f".{target.name}.partial"
        self.key = manifest.stage_key(identity, inputs)

    def finished(self) -> bool:
        published = repair_hints.read_manifest(self._name, self._target)
        return published is not None and published.key == self.key

    def prepare(self) -> None:
        """Prepare the folders. Before replacing a different artefact, check permission and print the differences."""
        published = repair_hints.read_manifest(self._name, self._target)
        if published is not None and published.key != self.key:
            why = explained(published.identity, published.inputs, self._identity, self._inputs)
            if self._check_replacing:
                self._check_replacing(why)
            print(f"{self._target}: will be rebuilt: {why}", flush=True)
        _prepare(self.partial, self.key, published is not None and published.key == self.key)

    def stage(self, done: bool) -> Stage:
        work, scratch = self.partial / "work", self.partial / "scratch"
        return Stage(self._name, self._target, work, scratch, self._identity, self._inputs, done)


def _begun(partial: Path) -> str | None:
    """Return the key of the build that was started in a folder, or None if no build was started there."""
    return (partial / _KEY).read_text() if (partial / _KEY).exists() else None


def _holds_work(partial: Path) -> bool:
    """Return whether a build has written any files other than lock files."""
    paths = (path for name in ("work", "scratch") for path in (partial / name).rglob("*"))
    return any(path.is_file() and path.suffix != ".lock" for path in paths)


def _discard(partial: Path, wanted: bool) -> None:
    """Remove an unfinished build. If it is ``wanted`` and has files, move it aside instead."""
    if wanted and _holds_work(partial):
        print(f"{partial}: unfinished build of another recipe or source, moved aside to {atomic.move_aside(partial)}")
    else:
        shutil.rmtree(partial)


def _prepare(partial: Path, key: str, finished: bool) -> None:
    """Remove the leftovers of other builds and killed writers, and record what is being built."""
    begun = _begun(partial)
    # A finished artefact with leftovers of the same key means that the build was killed after the rename. Leftovers
    # with another key may still be needed.
    if partial.exists() and (begun is None or finished == (begun == key)):
        _discard(partial, begun is not None and not finished)
    if not finished:
        for folder in (partial / "work", partial / "scratch"):
            folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(partial / _KEY, key)
    for torn in [path for path in partial.rglob(".*.partial") if path.is_file()]:
        torn.unlink()
