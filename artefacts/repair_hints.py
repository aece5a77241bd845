"""What to do about a damaged or missing data artefact: the command that makes it, in the line that names it."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artefacts import command_hints, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest

#: Artefact -> the target of make that builds it.
TARGETS = {
    "documents": "data",
    "tokenizer": "tokenizer",
    "tokens": "data",
    "packing": "data",
    "examples": "examples",
    "evaluation": "evaluate",
    "export": "export",
}


def hint(name: str, folder: Path, recipe: str | None = None) -> str:
    """How the artefact ``name`` that lies in ``folder`` is built again; ``recipe`` as ``hints.make`` takes it."""
    here = shlex.quote(str(folder))
    # What the documents were made from may be gone.
    away = f"mv {here} {shlex.quote(f'{folder}.damaged')}" if name == "documents" else f"rm -r {here}"
    return f"repair: {away} && {command_hints.make(TARGETS[name], recipe)}"


def check_sizes(name: str, folder: Path) -> None:
    """Look at the size of every file of an artefact, which costs nothing, before a stage reads it or leaves it be.

    Raises:
        RequestError: a file is missing or of another size than its manifest says.
    """
    if wrong := manifest.faults(folder, content=False):
        raise RequestError(f"{wrong[0]}; {hint(name, folder)}")


def read_manifest(name: str, folder: Path) -> Manifest | None:
    """``manifest.read`` of the artefact ``name``.

    Raises:
        RequestError: the manifest is damaged or unreadable; of an artefact that a command makes, it names that.
    """
    try:
        return manifest.read(folder)
    except manifest.DamagedError as error:
        if name not in TARGETS:
            raise
        raise manifest.DamagedError(error.fault, hint(name, folder)) from None


@contextmanager
def reading(name: str, path: Path) -> Iterator[None]:
    """Around reading a parquet file of the artefact ``name``.

    Raises:
        RequestError: Arrow cannot read it.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        message = " ".join(str(error).split())
        raise RequestError(f"{path}: damaged ({message}); {hint(name, path.parent)}") from None
