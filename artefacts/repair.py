"""What to do about a damaged or missing data artefact: the command that makes it, in the line that names it."""

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from artefacts import manifest
from artefacts.manifest import Manifest
from configs.errors import RequestError

#: Artefact -> the command that makes it.
COMMANDS = {
    "documents": "python -m pipeline clean",
    "tokenizer": "python -m tokenizer train",
    "tokens": "python -m pipeline tokenize",
    "packing": "python -m pipeline pack",
    "examples": "python -m pipeline examples",
    "evaluation": "python -m training evaluate",
    "export": "python -m training export",
}


def with_recipe(command: str, recipe: str | None = None) -> str:
    """A command as it is typed: with its recipe (left out: this process's own) and this process's overrides."""
    return shlex.join([*shlex.split(command), "--recipe", recipe or _recipe(), *_overrides()])


def _recipe() -> str:
    """The recipe among this process's arguments, which its workers have too; PATH where there is none."""
    for word, following in pairwise([*sys.argv, ""]):
        name, _, path = word.partition("=")
        if name == "--recipe" and (path or following):
            return path or following
    return "PATH"


def _overrides() -> list[str]:
    return [word for word in sys.argv[1:] if re.match(r"\w+(\.[\w-]+)+=", word)]


def cure(name: str, folder: Path, recipe: str | None = None) -> str:
    """How the artefact ``name`` that lies in ``folder`` is made anew; ``recipe`` as ``with_recipe`` takes it."""
    here = shlex.quote(str(folder))
    # What the documents were made from may be gone.
    away = f"mv {here} {shlex.quote(f'{folder}.damaged')}" if name == "documents" else f"rm -r {here}"
    return f"repair: {away} && {with_recipe(COMMANDS[name], recipe)}"


def check_sizes(name: str, folder: Path) -> None:
    """Look at the size of every file of an artefact, which costs nothing, before a stage reads it or leaves it be.

    Raises:
        RequestError: a file is missing or of another size than its manifest says.
    """
    if wrong := manifest.faults(folder, content=False):
        raise RequestError(f"{wrong[0]}; {cure(name, folder)}")


def read_manifest(name: str, folder: Path) -> Manifest | None:
    """``manifest.read`` of the artefact ``name``.

    Raises:
        RequestError: the manifest is damaged or unreadable; of an artefact that a command makes, it names that.
    """
    try:
        return manifest.read(folder)
    except manifest.DamagedError as error:
        if name not in COMMANDS:
            raise
        raise manifest.DamagedError(error.fault, cure(name, folder)) from None


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
        said = " ".join(str(error).split())
        raise RequestError(f"{path}: damaged ({said}); {cure(name, path.parent)}") from None
