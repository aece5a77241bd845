"""The life of a data artefact: skip what is finished, go on with what was started, publish whole or not at all.

A stage fills ``.NAME.partial`` beside its target; files in it are written whole (``publish.write_bytes`` or a rename),
so a restarted stage may keep those it finds. ``publish`` writes the manifest and renames the folder. An artefact of
another recipe or input is moved aside first, never overwritten.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artefacts import lock, manifest, publish
from artefacts.manifest import Manifest


@dataclass
class Stage:
    """One building of an artefact; made by ``open_stage``.

    Attributes:
        work: folder to fill. Files of an interrupted build with the same key are still there.
        finished: the artefact is published and up to date; there is nothing to do.
    """

    name: str
    target: Path
    work: Path
    identity: dict[str, Any]
    inputs: dict[str, str]
    finished: bool

    def publish(
        self, counts: dict[str, Any], versions: dict[str, str], details: dict[str, Any] | None = None
    ) -> Manifest:
        """Write the manifest over everything in ``work`` and rename it into place."""
        (self.work / _KEY).unlink(missing_ok=True)
        made = Manifest(
            stage=self.name,
            identity=self.identity,
            inputs=self.inputs,
            versions=versions,
            counts=counts,
            files=manifest.describe_files(self.work),
            details=details or {},
        )
        manifest.write(self.work, made)
        if self.target.exists():
            print(f"{self.target}: moved aside to {publish.move_aside(self.target)}")
        publish.rename_folder(self.work, self.target)
        return made


_KEY = ".key"


@contextmanager
def open_stage(name: str, target: Path, identity: dict[str, Any], inputs: dict[str, str]) -> Iterator[Stage]:
    """Begin or continue building ``target``, under its lock.

    Raises:
        RequestError: another process is building it.
    """
    work = target.parent / f".{target.name}.partial"
    key = manifest.stage_key(identity, inputs)
    with lock.hold(target):
        found = manifest.read(target)
        finished = found is not None and found.key == key
        if not finished and (not (work / _KEY).exists() or (work / _KEY).read_text() != key):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            publish.write_text(work / _KEY, key)
        for torn in [path for path in work.rglob(".*.partial") if path.is_file()]:
            torn.unlink()
        yield Stage(name, target, work, identity, inputs, finished)
