"""What the documents are made from; finished ones do without raw text that was removed, or does not answer."""

import glob
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from artefacts import fingerprint
from artefacts.errors import UnreachableError
from artefacts.manifest import Manifest
from configs.identities import documents_identity
from configs.schema import Recipe
from pipeline.sources.base import Source
from pipeline.sources.storage import files, remote
from pipeline.sources.storage.digests import SourceDigests
from pipeline.sources.storage.files import File

#: Files that a message names.
_SHOWN = 3


class _Read(NamedTuple):
    """Something that is read.

    Attributes:
        key: the recipe's key of its path.
        path: the path; None: it is read from elsewhere.
        name: what its entries among a manifest's inputs begin with, before a colon.
        look: looks it up and gives those entries: what tells its content from another's, or its files.
    """

    key: str
    path: str | None
    name: str
    look: Callable[[], dict[str, str | dict[str, File]]]


def _everything(recipe: Recipe, sources: dict[str, Source]) -> Iterator[_Read]:
    for name, section in recipe.data.named_sources.items():

        def own(name: str = name) -> dict[str, str | dict[str, File]]:
            return {f"{name}: {key}": value for key, value in sources[name].inputs().items()}

        yield _Read(f"{recipe.data.key_of(section)}.path", section.path, name, own)
        if section.target_path:
            yield _targets(f"{recipe.data.key_of(section)}.target_path", section.target_path, f"{name} targets")
    if path := recipe.data.clean.decontaminate.path:
        from pipeline.cleaning import decontamination

        def compared() -> dict[str, str | dict[str, File]]:
            return {"decontaminate": files.find(path, decontamination.ENDINGS, decontamination.KEY)}

        yield _Read(decontamination.KEY, path, "", compared)


def _targets(key: str, path: str, name: str) -> _Read:
    return _Read(key, path, name, lambda: {f"{name}: files": files.find(path, ("",), key)})


def inputs(recipe: Recipe, sources: dict[str, Source], digests: SourceDigests) -> dict[str, str]:
    """Fingerprints of everything that is read.

    Raises:
        RequestError: there is nothing at a path.
    """
    found = {name: value for read in _everything(recipe, sources) for name, value in read.look().items()}
    return _fingerprints(found, digests)


def _fingerprints(found: Mapping[str, str | dict[str, File]], digests: SourceDigests) -> dict[str, str]:
    return {name: value if isinstance(value, str) else digests.of(name, value) for name, value in found.items()}


def changed(made: dict[str, str], now: dict[str, str], digests: SourceDigests) -> str:
    """What differs between the inputs of an artefact and those of now, by the files where they are known."""
    said = []
    for name in sorted(name for name in {*made, *now} if made.get(name) != now.get(name)):
        names = digests.changed(name, made.get(name))
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        said.append(f"{name.removesuffix(': files')}: {', '.join(names[:_SHOWN])}{more}" if names else name)
    return "; ".join(said)


def paths(recipe: Recipe, sources: dict[str, Source]) -> dict[str, str]:
    """The recipe's key and path of everything that lies on this machine, for the manifest's details."""
    return {
        read.key: read.path for read in _everything(recipe, sources) if read.path is not None and _is_here(read.path)
    }


def inputs_or_remembered(
    recipe: Recipe, sources: dict[str, Source], made: Manifest | None, target: Path, digests: SourceDigests
) -> dict[str, str]:
    """``inputs``; what ``made``, the manifest of ``target``, says of those that are gone or do not answer.

    It must be of the recipe's identity, and of a path on this machine it must have been read from the same one.

    Raises:
        RequestError: something cannot be found and ``made`` does not know it.
        UnreachableError: the same of something over the network.
    """
    if made is not None and fingerprint.of_value(made.identity) != fingerprint.of_value(documents_identity(recipe)):
        made = None
    # Not in what an earlier version made.
    recorded = made.details.get("paths", {}) if made else {}

    def remembered(read: _Read, why: str) -> dict[str, str]:
        print(f"{target}: taken as they are, not compared with their source: {why}", file=sys.stderr)
        inputs = made.inputs if made is not None else {}
        return {key: value for key, value in inputs.items() if key.rpartition(": ")[0] == read.name}

    found: list[tuple[_Read, Mapping[str, str | dict[str, File]]]] = []
    for read in _everything(recipe, sources):
        if read.path is not None and recorded.get(read.key) == read.path and not _is_here(read.path):
            found.append((read, remembered(read, f"{read.key}: {read.path} is not there any more")))
            continue
        try:
            found.append((read, read.look()))
        except UnreachableError as error:
            if made is None:
                raise
            found.append((read, remembered(read, str(error))))
    # Nothing is noted before all of it is there.
    now: dict[str, str] = {}
    for read, entries in found:
        try:
            now |= _fingerprints(entries, digests)
        except UnreachableError as error:
            if made is None:
                raise
            now |= remembered(read, str(error))
    if made is not None and made.inputs != now:
        print(f"{target}: the source has changed: {changed(made.inputs, now, digests)}", file=sys.stderr)
    return now


def _is_here(path: str) -> bool:
    """Whether this machine has a file at a path, below it, or matching it; also where that may not be looked up."""
    if remote.is_url(path.removeprefix("file://")):
        return False
    given = Path(path.removeprefix("file://")).expanduser()
    try:
        if given.is_dir():
            found = os.walk(given, onerror=_raise, followlinks=True)
            return any(not name.startswith(".") for _, _, names in found for name in names)
        # A link to nothing is there; pathlib globs below a folder only.
        return (
            given.exists()
            or given.is_symlink()
            or any(not os.path.isdir(name) for name in glob.iglob(str(given), recursive=True))  # noqa: PTH112, PTH207
        )
    except OSError:
        return True


def _raise(error: OSError) -> NoReturn:
    raise error
