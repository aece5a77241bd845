"""Code that all ``python -m`` commands share: arguments, the recipe, one-line error messages and exit statuses."""

import argparse
import errno
import io
import sys
from collections.abc import Callable, Sequence

from artefacts import command_hints, differences, signals
from artefacts.errors import STORAGE_FAULTS, RequestError, StoppedError, StorageError, WorkerKilledError, utf8_fault
from configs.checks import changed_keys, command_keys
from configs.load import load_recipe
from configs.schema import Recipe

#: The recipe that ``make`` uses if RECIPE is not set, as in the Makefile.
DEFAULT_RECIPE = "configs/demo.yaml"
command_hints.install(DEFAULT_RECIPE, command_keys.OF_LAUNCHERS, command_keys.target_reads)
differences.install(changed_keys.changed_keys, changed_keys.changed_input)

#: Exit statuses that all commands use.
DONE, FAILED, WRONG_REQUEST, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130

#: Printed at the end of every --help.
EPILOG = "To look up a recipe key, run: make explain KEY=train.steps. All keys are in docs/recipe.md."

OVERRIDE_HELP = "override a recipe key, such as train.learning_rate=0.002"


def add_recipe_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--recipe FILE`` and any number of ``section.key=value`` arguments."""
    parser.add_argument("--recipe", required=required, metavar="FILE", help="recipe, a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=OVERRIDE_HELP)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse arguments, with overrides in any position. ``parse_args`` alone rejects overrides that follow an option.

    Raises:
        RequestError: an option is unknown.
    """
    _tidy_help(parser)
    parsed, rest = parser.parse_known_args(arguments)
    if unknown := [word for word in rest if word.startswith("-")]:
        verb = str(getattr(parsed, "verb", None) or getattr(parsed, "kind", ""))
        options = ", ".join(_options(parser, verb))
        raise RequestError(
            f"{verb} has no option {unknown[0].partition('=')[0]}: its options are {options}; write recipe keys as "
            "section.key=value, without dashes"
        )
    parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _tidy_help(parser: argparse.ArgumentParser) -> None:
    """Add the common epilog to a parser and its subcommands, and remove docstring markup from their descriptions."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for sub in (parser, *(sub for group in groups for sub in group.choices.values())):
        sub.description = sub.description.replace("``", "") if sub.description else None
        sub.epilog = sub.epilog or EPILOG


def _options(parser: argparse.ArgumentParser, verb: str) -> list[str]:
    """List the options of the subcommand ``verb``, or of the parser itself if there is no such subcommand."""
    groups = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    chosen: argparse.ArgumentParser = next((group.choices[verb] for group in groups if verb in group.choices), parser)
    strings = (string for action in chosen._actions for string in action.option_strings)
    return [string for string in strings if string.startswith("--")]


def read_recipe(arguments: argparse.Namespace) -> Recipe:
    """Load the recipe and apply the overrides. Both come from arguments that ``add_recipe_arguments`` added."""
    return load_recipe(arguments.recipe, arguments.overrides)


def run(main: Callable[[Sequence[str]], int | None], restartable: bool = False) -> None:
    """Run a command's ``main`` and exit with its status. An invalid request prints one line to stderr.

    If ``restartable`` is set, the command saves its work as it goes, so SIGTERM and SIGUSR1 stop it with status 75.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Escape characters that the terminal cannot show.
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
        # If a signal interrupts an import, the import may raise an unrelated error.
        status, message = _outcome(signals.pending() or error, restartable)
        if message:
            print(message, file=sys.stderr)
    sys.exit(status or DONE)


def _outcome(error: BaseException, restartable: bool) -> tuple[int, str]:
    """Return the exit status and the message for an error, or re-raise the error if it is a bug."""
    match error:
        case RequestError():
            return WRONG_REQUEST, f"error: {error}"
        case StorageError() | WorkerKilledError():
            return FAILED, f"error: {error}"
        case BrokenPipeError():
            return DONE, ""
        case StoppedError():
            return STOPPED, f"stopped by {error}: run the same command again to continue"
        case KeyboardInterrupt():
            return INTERRUPTED, "stopped: run the same command again to continue" if restartable else ""
        case OSError() if message := _storage_message(error):
            return FAILED, f"error: {message}"
    raise error


def _storage_message(error: OSError) -> str | None:
    """Describe a file system error in one line, or return None for any other kind of error."""
    where = f"{error.filename}: " if error.filename else ""
    # Arrow's errors contain the errno only in their text.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"{where}the disk is full: free some space and run the same command again; finished work is kept"
    if error.errno == errno.EFBIG or "File too large" in str(error):
        return f"{where}the file is larger than the file system or the shell (ulimit -f) allows"
    if isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return f"{where}{error.strerror}"
    if error.errno in STORAGE_FAULTS or any(text in str(error) for text in ("Input/output error", "Stale file handle")):
        return f"{where}the disk failed to read or write ({error}): check it and run the same command again"
    return None
