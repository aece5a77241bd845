"""Ready-to-paste commands for messages. They include this process's recipe and overrides."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path


def _reads_any(target: str, key: str) -> bool:
    return True


_default_recipe = ""
_of_launchers: Sequence[str] = ()
_target_reads: Callable[[str, str], bool] = _reads_any
_added: list[str] = []


def install(default_recipe: str, of_launchers: Sequence[str], target_reads: Callable[[str, str], bool]) -> None:
    """Set what later hints leave out. See ``configs.command``.

    Args:
        default_recipe: the recipe that ``make`` uses if RECIPE is not set.
        of_launchers: keys that launchers set when they start processes. Users do not type them.
        target_reads: whether a make target, the first argument, reads a key, the second one.
    """
    global _default_recipe, _of_launchers, _target_reads
    _default_recipe, _of_launchers, _target_reads = default_recipe, of_launchers, target_reads


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
    if path and Path(path) != Path(_default_recipe):
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
    return [word for word in typed if word.partition("=")[0] not in _of_launchers]
