"""The life of a data artefact: skip what is finished, go on with what was started, publish whole or not at all.

Beside its target a stage has ``.NAME.partial``, which holds ``key`` (what is being built), ``work/`` (what will be
published) and ``scratch/`` (what only a restarted build needs). Files in them are written whole (by
``publish.write_bytes`` or a rename), so a restarted stage may keep those it finds. ``publish`` writes the manifest,
renames ``work/`` to the target and only then removes the rest: whenever it is killed, nothing that was built is lost.
A command that is refused before it has written a file leaves nothing behind. An artefact of another recipe or input is
moved aside first, never overwritten, and what differs is printed.
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
    """One building of an artefact; made by ``open_stage``.

    Attributes:
        work: folder to fill. Files of an interrupted build with the same key are still there.
        scratch: folder for intermediate files; kept like ``work``, never published.
        finished: the artefact is published and up to date; there is nothing to do.
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
        """Write the manifest over everything in ``work`` and rename it into place."""
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
    """Begin or continue building ``target``, under its lock.

    Args:
        name: of the artefact.
        target: its folder.
        identity: the recipe keys that it depends on.
        inputs: fingerprints of what it is made from.
        shared: next to other tasks of the same building.
        check_replacing: called with what differs before the building of another artefact than the one that is there.

    Raises:
        RequestError: another process is building it, or (shared) tasks of another recipe or input are; or it is
            finished and a file of it is missing or of another size; or what ``check_replacing`` raises.
    """
    building = _Building(name, target, identity, inputs, check_replacing)
    partial = building.partial
    if not shared and building.finished() and not partial.exists():
        # Nothing is written, so nobody is in the way, and the folder may be another user's.
        repair_hints.check_sizes(name, target)
        yield building.stage(done=True)
        return
    if target.is_mount():
        raise RequestError(
            f"{target}: a disk is mounted there, to which what is built next to it cannot be renamed: link to a folder "
            "on that disk, or set run.root or data.root to one"
        )
    with lock.share(target, building.prepare) if shared else lock.hold(target):
        if not shared:
            building.prepare()
        done = building.finished()
        if not done and _begun(partial) != building.key:
            raise RequestError(f"{target}: tasks of another recipe or source are at work there: wait for them")
        if done:
            repair_hints.check_sizes(name, target)
        try:
            yield building.stage(done)
        except RequestError:
            # Other tasks may be about to write their first file there.
            if not (done or shared or _holds_work(partial)):
                shutil.rmtree(partial)
            raise


class _Building:
    """What ``open_stage`` was asked for, and what of it is there."""

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
        """Make ready to build; what differs from what is there is looked at first, and printed."""
        published = repair_hints.read_manifest(self._name, self._target)
        if published is not None and published.key != self.key:
            why = explained(published.identity, published.inputs, self._identity, self._inputs)
            if self._check_replacing:
                self._check_replacing(why)
            print(f"{self._target}: to be built again: {why}", flush=True)
        _prepare(self.partial, self.key, published is not None and published.key == self.key)

    def stage(self, done: bool) -> Stage:
        work, scratch = self.partial / "work", self.partial / "scratch"
        return Stage(self._name, self._target, work, scratch, self._identity, self._inputs, done)


def _begun(partial: Path) -> str | None:
    """The key of what was begun there."""
    return (partial / _KEY).read_text() if (partial / _KEY).exists() else None


def _holds_work(partial: Path) -> bool:
    """Whether anything was written there, locks of its steps aside."""
    paths = (path for name in ("work", "scratch") for path in (partial / name).rglob("*"))
    return any(path.is_file() and path.suffix != ".lock" for path in paths)


def _discard(partial: Path, wanted: bool) -> None:
    """Clear what was begun there; unfinished work of another recipe or source is moved aside, where there is any."""
    if wanted and _holds_work(partial):
        print(f"{partial}: begun from another recipe or source, moved aside to {atomic.move_aside(partial)}")
    else:
        shutil.rmtree(partial)


def _prepare(partial: Path, key: str, finished: bool) -> None:
    """Clear what another build or a killed writer left, and note what is being built."""
    begun = _begun(partial)
    # Finished and begun too: it was killed after the rename. Finished, another begun: that may still be wanted.
    if partial.exists() and (begun is None or finished == (begun == key)):
        _discard(partial, begun is not None and not finished)
    if not finished:
        for folder in (partial / "work", partial / "scratch"):
            folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(partial / _KEY, key)
    for torn in [path for path in partial.rglob(".*.partial") if path.is_file()]:
        torn.unlink()
