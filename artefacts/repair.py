"""What to do about a damaged data artefact: the command that makes it again, in the line that names the damage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artefacts import manifest
from configs.errors import RequestError

#: Artefact -> the command that makes it.
COMMANDS = {
    "documents": "python -m pipeline clean",
    "tokenizer": "python -m tokenizer train",
    "tokens": "python -m pipeline tokenize",
    "packing": "python -m pipeline pack",
    "examples": "python -m pipeline examples",
    "evaluation": "python -m training evaluate",
}


def cure(name: str, folder: Path, recipe: str = "...") -> str:
    """How the artefact ``name`` that lies in ``folder`` is made anew."""
    return f"repair: rm -r {folder} && {COMMANDS[name]} --recipe {recipe}, with the same overrides"


def check_sizes(name: str, folder: Path) -> None:
    """Look at the size of every file of an artefact, which costs nothing, before a stage reads it.

    Raises:
        RequestError: a file is missing or of another size than its manifest says.
    """
    if wrong := manifest.faults(folder, content=False):
        raise RequestError(f"{wrong[0]}; {cure(name, folder)}")


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
