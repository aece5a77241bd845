"""What to do about a damaged or missing artefact: messages name the command that rebuilds it."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artefacts import command_hints, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest

#: Artefact -> the make target that builds it.
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
    """How to rebuild the artefact ``name`` in ``folder``; ``recipe`` as in ``command_hints.make``."""
    quoted = shlex.quote(str(folder))
    # The sources of the documents may no longer exist.
    away = f"mv {quoted} {shlex.quote(f'{folder}.damaged')}" if name == "documents" else f"rm -r {quoted}"
    return f"repair: {away} && {command_hints.make(TARGETS[name], recipe)}"


def check_sizes(name: str, folder: Path) -> None:
    """Check the size of every file of an artefact before it is used, or reported to be up to date.

    Raises:
        RequestError: a file is missing, or does not have the size that the manifest says.
    """
    if wrong := manifest.faults(folder, content=False):
        raise RequestError(f"{wrong[0]}; {hint(name, folder)}")


def read_manifest(name: str, folder: Path) -> Manifest | None:
    """``manifest.read`` of the artefact ``name``.

    Raises:
        RequestError: the manifest is damaged or unreadable. The message names the command that builds the artefact.
    """
    try:
        return manifest.read(folder)
    except manifest.DamagedError as error:
        if name not in TARGETS:
            raise
        raise manifest.DamagedError(error.fault, hint(name, folder)) from None


@contextmanager
def reading(name: str, path: Path) -> Iterator[None]:
    """A context for reading a parquet file of the artefact ``name``.

    Raises:
        RequestError: Arrow cannot read it.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        message = " ".join(str(error).split())
        raise RequestError(f"{path}: damaged ({message}); {hint(name, path.parent)}") from None
