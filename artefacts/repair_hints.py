"""Messages about damaged or missing artefacts, with the command that rebuilds them."""

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
    """Say how to rebuild the artefact ``name`` in ``folder``. ``recipe`` is passed to ``command_hints.make``."""
    quoted = shlex.quote(str(folder))
    # The documents' sources may no longer exist, so move the documents rather than delete them.
    away = f"mv {quoted} {shlex.quote(f'{folder}.damaged')}" if name == "documents" else f"rm -r {quoted}"
    return f"repair: {away} && {command_hints.make(TARGETS[name], recipe)}"


def check_sizes(name: str, folder: Path) -> None:
    """Check the size of every file in an artefact before it is used or reported as up to date.

    Raises:
        RequestError: a file is missing, or its size differs from the manifest.
    """
    if wrong := manifest.faults(folder, content=False):
        raise RequestError(f"{wrong[0]}; {hint(name, folder)}")


def read_manifest(name: str, folder: Path) -> Manifest | None:
    """Read the manifest of the artefact ``name``, like ``manifest.read``, but with better error messages.

    Raises:
        RequestError: the manifest cannot be read. If it is damaged, the message names the command that rebuilds the
            artefact.
    """
    try:
        return manifest.read(folder)
    except manifest.DamagedError as error:
        if name not in TARGETS:
            raise
        raise manifest.DamagedError(error.fault, hint(name, folder)) from None


@contextmanager
def reading(name: str, path: Path) -> Iterator[None]:
    """Context manager for reading a Parquet file of the artefact ``name``.

    Raises:
        RequestError: Arrow cannot read the file.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        message = " ".join(str(error).split())
        raise RequestError(f"{path}: damaged ({message}); {hint(name, path.parent)}") from None
