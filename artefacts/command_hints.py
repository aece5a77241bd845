"""Ready-to-paste commands for messages. They include this process's recipe and overrides."""

import os
import re
import shlex
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

#: The recipe that ``make`` uses if RECIPE is not set.
_DEFAULT_RECIPE = "configs/demo.yaml"
#: Overrides that launchers add when they start processes. Users do not type them.
_OF_LAUNCHERS = ("launch.kind=", "launch.rendezvous=")


def _reads_any(target: str, key: str) -> bool:
    return True


_target_reads: Callable[[str, str], bool] = _reads_any
_added: list[str] = []


def install_key_filter(target_reads: Callable[[str, str], bool]) -> None:
    """Show an override in later hints only if ``target_reads(target, key)`` is true. See ``configs.command``."""
    global _target_reads
    _target_reads = target_reads


def add_override(word: str) -> None:
    """Add an override to all later ``make`` hints, because the typed overrides are not valid without it."""
    _added.append(word)


def make(target: str, recipe: str | None = None, *more: str) -> str:
    """Return ``make TARGET`` with RECIPE and, in ARGS, the overrides that the target reads.

    Args:
        target: the make target.
        recipe: the recipe to name, or None for this process's recipe.
        more: additional overrides.
    """
    words = ["make", target]
    path = recipe or _recipe()
    if path and Path(path) != Path(_DEFAULT_RECIPE):
        words.append(f"RECIPE={_quoted(path)}")
    overrides = [word for word in [*_overrides(), *_added] if _target_reads(target, word.partition("=")[0])]
    if overrides := [*overrides, *more]:
        # Double every $, because make would expand a single one.
        words.append(f"ARGS={_quoted(' '.join(map(shlex.quote, overrides)).replace('$', '$$'))}")
    return " ".join(words)


def python(command: str) -> str:
    """Return ``python -m COMMAND`` with this interpreter's path, ``--recipe`` and the overrides."""
    words = ["-m", *shlex.split(command), "--recipe", _recipe() or "FILE", *_overrides()]
    return shlex.join([_interpreter(), *words])


def _quoted(text: str) -> str:
    """Quote a word for the shell, with double quotes if possible."""
    if shlex.quote(text) == text or re.search(r'["`\\!]|\$(?!\$)', text):
        return shlex.quote(text)
    # Within double quotes, the shell would replace $$ with its process ID.
    return shlex.quote(text) if "$" in text else f'"{text}"'


def _interpreter() -> str:
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _recipe() -> str:
    """Return the recipe's path from this process's arguments, or "" if there is none. Workers inherit the arguments."""
    for word, following in pairwise([*sys.argv, ""]):
        name, _, path = word.partition("=")
        if name == "--recipe" and (path or following):
            return os.fsencode(path or following).decode("utf-8", "backslashreplace")
    return ""


def _overrides() -> list[str]:
    typed = [word for word in sys.argv[1:] if re.match(r"\w+(\.[\w-]+)+=", word)]
    return [word for word in typed if not word.startswith(_OF_LAUNCHERS)]
