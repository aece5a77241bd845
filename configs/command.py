"""What every ``python -m`` command does alike: arguments, the recipe, and faults as one line with the right status."""

import argparse
import errno
import io
import sys
from collections.abc import Callable, Sequence

from artefacts import command_hints, signals
from artefacts.errors import STORAGE_FAULTS, RequestError, StoppedError, StorageError, WorkerKilledError, utf8_fault
from configs.checks import command_keys
from configs.load import load_recipe
from configs.schema import Recipe

command_hints.install_key_filter(command_keys.target_reads)

#: Exit statuses of every command.
DONE, FAILED, WRONG_REQUEST, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130

OVERRIDE_HELP = "override of a recipe key, such as train.learning_rate=0.002"


def add_recipe_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """``--recipe FILE``, which may be left out unless ``required``, and any number of ``section.key=value``."""
    parser.add_argument("--recipe", required=required, metavar="FILE", help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDE_HELP)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """``parse_args`` that takes overrides anywhere; argparse alone loses those that stand behind an option."""
    parsed, rest = parser.parse_known_args(arguments)
    if unknown := [word for word in rest if word.startswith("-")]:
        verb = str(getattr(parsed, "verb", None) or getattr(parsed, "kind", ""))
        options = ", ".join(_options(parser, verb))
        raise RequestError(
            f"{verb} has no option {unknown[0].partition('=')[0]}: its options are {options}; keys of the recipe are "
            "written section.key=value, without dashes"
        )
    parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _options(parser: argparse.ArgumentParser, verb: str) -> list[str]:
    """Options of a command of a parser."""
    groups = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    chosen: argparse.ArgumentParser = next((group.choices[verb] for group in groups if verb in group.choices), parser)
    strings = (string for action in chosen._actions for string in action.option_strings)
    return [string for string in strings if string.startswith("--")]


def read_recipe(arguments: argparse.Namespace) -> Recipe:
    """The recipe that ``add_recipe_arguments`` asked for."""
    return load_recipe(arguments.recipe, arguments.overrides)


def run(main: Callable[[Sequence[str]], int | None], restartable: bool = False) -> None:
    """Run a command's main and leave the process with its exit status; a wrong request is one line on stderr.

    ``restartable``: the command saves as it goes, so SIGTERM and SIGUSR1 stop it with status 75.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show is spelled out, not a fault of the command.
            stream.reconfigure(errors="backslashreplace")
    if restartable:
        signals.install()
    try:
        if fault := next(filter(None, map(utf8_fault, sys.argv[1:])), None):
            raise RequestError(fault)
        status = main(sys.argv[1:])
        signals.end()
    except (Exception, KeyboardInterrupt) as error:
        signals.end()
        # An import that a signal breaks off ends in a fault of its own.
        status, said = _outcome(signals.pending() or error, restartable)
        if said:
            print(said, file=sys.stderr)
    sys.exit(status or DONE)


def _outcome(error: BaseException, restartable: bool) -> tuple[int, str]:
    """Exit status and line of a command that this ended; raises it again where it is a fault of ours."""
    match error:
        case RequestError():
            return WRONG_REQUEST, f"error: {error}"
        case StorageError() | WorkerKilledError():
            return FAILED, f"error: {error}"
        case BrokenPipeError():
            return DONE, ""
        case StoppedError():
            return STOPPED, f"stopped by {error}: the same command goes on where it was"
        case KeyboardInterrupt():
            return INTERRUPTED, "stopped: the same command goes on where it was" if restartable else ""
        case OSError() if said := _said(error):
            return FAILED, f"error: {said}"
    raise error


def _said(error: OSError) -> str | None:
    """One line about a fault of the file system; None where it is of another sort."""
    where = f"{error.filename}: " if error.filename else ""
    # Arrow's errors carry the number in their text alone.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"{where}the disk is full: free some space and run the same again; what is finished is kept"
    if error.errno == errno.EFBIG or "File too large" in str(error):
        return f"{where}the file would be larger than the file system or the limit of this shell (ulimit -f) allows"
    if isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return f"{where}{error.strerror}"
    if error.errno in STORAGE_FAULTS or any(said in str(error) for said in ("Input/output error", "Stale file handle")):
        return f"{where}the disk failed to read or write ({error}): see to it and run the same again"
    return None
