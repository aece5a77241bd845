"""The manifest of an artefact: what made it, what went in, what came out. What has a manifest is whole.

On disk it is ``manifest.json`` in the artefact's folder. It holds no clock, host name or process number, so that the
same recipe and input give the same bytes.
"""

import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, fingerprint
from artefacts.errors import RequestError

NAME = "manifest.json"
FORMAT = 1
MILLRACE_VERSION = "0.1.0"
#: Files hashed at a time.
_READERS = min(8, os.cpu_count() or 1)


class DamagedError(RequestError):
    """A manifest that cannot be used: ``fault`` says why, without a cure, for callers that know a better one."""

    def __init__(self, fault: str, cure: str = "move the folder away and rebuild") -> None:
        super().__init__(fault, cure)
        self.fault = fault

    def __str__(self) -> str:
        return "; ".join(self.args)


class OtherFormatError(RequestError):
    """A manifest of another version of Millrace: ``fault`` says so, without a cure."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault}: use the one that made it, or move the folder away and rebuild")
        self.fault = fault


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``.

    Attributes:
        stage: the stage that made the artefact.
        identity: the resolved recipe keys that it depends on.
        inputs: name -> fingerprint of each artefact or source that went in.
        versions: name -> version of the code and libraries that matter.
        counts: documents, bytes, tokens, drops by reason, ...
        files: name (relative, posix) -> {"bytes": size, "sha256": digest}.
        details: anything else that readers of the artefact need.
    """

    stage: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str]
    counts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def key(self) -> str:
        """What the artefact was asked to be; the same key needs no rebuilding."""
        return stage_key(self.identity, self.inputs)

    @property
    def fingerprint(self) -> str:
        """What the artefact is: its files' digests. Goes into the inputs of what is built from it."""
        return fingerprint.of_value({name: entry["sha256"] for name, entry in self.files.items()})


def stage_key(identity: dict[str, Any], inputs: dict[str, str]) -> str:
    return fingerprint.of_value({"identity": identity, "inputs": inputs})


def versions(*distributions: str) -> dict[str, str]:
    """Versions of Millrace, Python and the named distributions that are installed."""
    versions_by_name = {"millrace": MILLRACE_VERSION, "python": platform.python_version()}
    for name in distributions:
        try:
            versions_by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions_by_name


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below a folder but the manifest."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME)
    # Hashing lets go of the interpreter's lock.
    with ThreadPoolExecutor(_READERS) as threads:
        digests = list(threads.map(fingerprint.of_file, paths))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }


def write(folder: Path, manifest: Manifest) -> None:
    atomic.write_json(folder / NAME, asdict(manifest))


def read(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none (nothing there, or not finished).

    Raises:
        DamagedError: the manifest is damaged.
        RequestError: it is of another format or cannot be read, or the folder is a file.
    """
    try:
        values = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise OtherFormatError(f"{folder / NAME}: format {values['format']}, this Millrace reads {FORMAT}")
        return _checked(Manifest(**values))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise RequestError(f"{folder}: a folder is wanted and a file is in its place: move it away") from None
    except OSError as error:
        raise RequestError(f"{folder / NAME}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{folder / NAME}: damaged manifest ({error})") from None


def _checked(loaded: Manifest) -> Manifest:
    """The same manifest; ValueError where a field is of another type than its annotation says."""
    if not isinstance(loaded.stage, str):
        raise ValueError("stage is not text")
    for name in ("identity", "inputs", "versions", "counts", "files", "details"):
        if not isinstance(getattr(loaded, name), dict):
            raise ValueError(f"{name} is not a mapping")
    for name, entry in loaded.files.items():
        sound = isinstance(entry, dict) and isinstance(entry.get("bytes"), int)
        if not sound or not isinstance(entry.get("sha256"), str):
            raise ValueError(f"files: {name} lacks its size or sha256")
    return loaded


def require(folder: Path, target: str) -> Manifest:
    """The manifest of a folder that another stage must have written; ``target``: of make, which builds it.

    Raises:
        RequestError: it is not there, or damaged; the message says which command makes it.
    """
    try:
        loaded = read(folder)
    except DamagedError as error:
        raise DamagedError(error.fault, f"move {folder} away and run `{command_hints.make(target)}`") from None
    if loaded is None:
        raise RequestError(f"{folder} is not there or not finished: run `{command_hints.make(target)}` first")
    return loaded


#: Content is checked where it is used while that takes a second; above, sizes alone, and `make verify` for the rest.
_CHECKED_BYTES = 2**30


def require_sound(folder: Path, target: str) -> Manifest:
    """The manifest of a folder that is about to be used and is as it says; ``target``: of make, which builds it.

    Raises:
        RequestError: it is not there, or damaged; the message says which command makes it.
    """
    loaded = require(folder, target)
    small = sum(entry["bytes"] for entry in loaded.files.values()) <= _CHECKED_BYTES
    if wrong := faults(folder, content=small):
        raise RequestError(f"{wrong[0]}: damaged; `rm -r {folder}`, then `{command_hints.make(target)}`")
    return loaded


def _file_fault(path: Path, entry: dict[str, Any], content: bool) -> str | None:
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}"
    if content and fingerprint.of_file(path) != entry["sha256"]:
        return f"{path}: content differs from the manifest's sha256"
    return None


def faults(folder: Path, content: bool = True, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Compare a folder with its manifest; a line for each missing, resized or changed file. Empty: it is whole.

    ``share``: (which, of how many) of the files are looked at, where several processes divide them.
    """
    loaded = read(folder)
    if loaded is None:
        return [f"{folder}: no manifest"]
    mine = sorted(loaded.files.items())[share[0] :: share[1]]
    with ThreadPoolExecutor(_READERS) as threads:
        checked = threads.map(lambda item: _file_fault(folder / item[0], item[1], content), mine)
        return [fault for fault in checked if fault]
