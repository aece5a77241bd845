"""An artefact's manifest: its recipe keys, inputs and files. An artefact with a manifest is complete.

The manifest is the file ``manifest.json`` in the artefact's folder. It contains no timestamp, host name or process ID,
so the same recipe and inputs always produce an identical file.
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
#: Number of files to hash concurrently.
_READERS = min(8, os.cpu_count() or 1)


class DamagedError(RequestError):
    """The manifest is damaged. ``fault`` is the error message without the fix, for callers that know a better fix."""

    def __init__(self, fault: str, fix: str = "move the folder away and rebuild") -> None:
        super().__init__(fault, fix)
        self.fault = fault

    def __str__(self) -> str:
        return "; ".join(self.args)


class OtherFormatError(RequestError):
    """Another version of Millrace wrote the manifest. ``fault`` is the error message without the fix."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"{fault}: use the version that wrote it, or move the folder away and rebuild")
        self.fault = fault


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``.

    Attributes:
        stage: the stage that built the artefact.
        identity: the resolved recipe keys that the artefact depends on.
        inputs: name -> fingerprint, for each artefact or source that the artefact was built from.
        versions: name -> version, for Millrace and the relevant libraries.
        counts: documents, bytes, tokens, dropped documents by reason, ...
        files: relative POSIX path -> {"bytes": size, "sha256": digest}.
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
        """A hash of the identity and the inputs. An artefact is up to date if its key matches the recipe's."""
        return stage_key(self.identity, self.inputs)

    @property
    def fingerprint(self) -> str:
        """A hash of the files' digests. Every artefact that is built from this artefact records it as an input."""
        return fingerprint.of_value({name: entry["sha256"] for name, entry in self.files.items()})


def stage_key(identity: dict[str, Any], inputs: dict[str, str]) -> str:
    return fingerprint.of_value({"identity": identity, "inputs": inputs})


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of Millrace, Python and every named distribution that is installed."""
    versions_by_name = {"millrace": MILLRACE_VERSION, "python": platform.python_version()}
    for name in distributions:
        try:
            versions_by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions_by_name


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and SHA-256 of every file below a folder, except the manifest."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / NAME)
    # Hashing releases the GIL.
    with ThreadPoolExecutor(_READERS) as threads:
        digests = list(threads.map(fingerprint.of_file, paths))
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }


def write(folder: Path, manifest: Manifest) -> None:
    atomic.write_json(folder / NAME, asdict(manifest))


def read(folder: Path) -> Manifest | None:
    """Read a folder's manifest. Returns None if the folder does not exist or has no manifest yet.

    Raises:
        DamagedError: the manifest is damaged.
        RequestError: the manifest has another format or cannot be read, or the folder is a file.
    """
    try:
        values = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise OtherFormatError(f"{folder / NAME}: format {values['format']}, but this Millrace reads {FORMAT}")
        return _checked(Manifest(**values))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise RequestError(f"{folder} is a file, not a folder: move it away") from None
    except OSError as error:
        raise RequestError(f"{folder / NAME}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{folder / NAME}: damaged manifest ({error})") from None


def _checked(loaded: Manifest) -> Manifest:
    """Return the manifest, or raise ValueError if a field does not have its annotated type."""
    if not isinstance(loaded.stage, str):
        raise ValueError("stage is not text")
    for name in ("identity", "inputs", "versions", "counts", "files", "details"):
        if not isinstance(getattr(loaded, name), dict):
            raise ValueError(f"{name} is not a mapping")
    for name, entry in loaded.files.items():
        sound = isinstance(entry, dict) and isinstance(entry.get("bytes"), int)
        if not sound or not isinstance(entry.get("sha256"), str):
            raise ValueError(f"files: {name} has no size or sha256")
    return loaded


def require(folder: Path, target: str) -> Manifest:
    """Read the manifest of an artefact that an earlier stage must have built. ``target`` is the stage's make target.

    Raises:
        RequestError: the manifest is missing or damaged; the message names the command that builds the artefact.
    """
    try:
        loaded = read(folder)
    except DamagedError as error:
        raise DamagedError(error.fault, f"move {folder} away and run `{command_hints.make(target)}`") from None
    if loaded is None:
        raise RequestError(f"{folder} is missing or not finished: run `{command_hints.make(target)}` first")
    return loaded


#: Artefacts up to this size are hashed before use, which takes about a second. For larger ones, only the file sizes are
#: checked, and `make verify` checks the contents.
_CHECKED_BYTES = 2**30


def require_sound(folder: Path, target: str) -> Manifest:
    """Check the files of an artefact that is about to be used, and return its manifest.

    Raises:
        RequestError: the artefact is missing or damaged; the message names the make target that builds it.
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
        return f"{path}: {path.stat().st_size} bytes, but the manifest says {entry['bytes']}"
    if content and fingerprint.of_file(path) != entry["sha256"]:
        return f"{path}: content does not match the manifest's sha256"
    return None


def faults(folder: Path, content: bool = True, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Compare a folder with its manifest.

    Args:
        folder: the folder.
        content: whether to compare the files' SHA-256 hashes too, not only their sizes.
        share: check every ``share[1]``-th file, starting at ``share[0]``, so that processes can divide the work.

    Returns:
        A line for each file that is missing or differs. Empty if the artefact is complete.
    """
    loaded = read(folder)
    if loaded is None:
        return [f"{folder}: no manifest"]
    mine = sorted(loaded.files.items())[share[0] :: share[1]]
    with ThreadPoolExecutor(_READERS) as threads:
        checked = threads.map(lambda item: _file_fault(folder / item[0], item[1], content), mine)
        return [fault for fault in checked if fault]
