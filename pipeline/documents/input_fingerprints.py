"""Fingerprints of the inputs that the documents are built from.

Finished documents stay usable without their raw text. If an input was removed or cannot be reached over the network,
its recorded fingerprint is used instead.
"""

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

#: Maximum number of files to list in a message.
_SHOWN = 3


class _Input(NamedTuple):
    """An input that the documents are built from.

    Attributes:
        key: the recipe key for its path.
        path: the input's path, or None if it has none.
        name: prefix of the input's entries in a manifest, before the colon.
        look_up: function that returns these entries: files, or a string that changes with the content.
    """

    key: str
    path: str | None
    name: str
    look_up: Callable[[], dict[str, str | dict[str, File]]]


def _inputs(recipe: Recipe, sources: dict[str, Source]) -> Iterator[_Input]:
    for name, section in recipe.data.named_sources.items():

        def of_source(name: str = name) -> dict[str, str | dict[str, File]]:
            return {f"{name}: {key}": value for key, value in sources[name].inputs().items()}

        yield _Input(f"{recipe.data.key_of(section)}.path", section.path, name, of_source)
        if section.target_path:
            yield _targets(f"{recipe.data.key_of(section)}.target_path", section.target_path, f"{name} targets")
    if path := recipe.data.clean.decontaminate.path:
        from pipeline.cleaning import decontamination

        def evaluation_texts() -> dict[str, str | dict[str, File]]:
            return {"decontaminate": files.find(path, decontamination.ENDINGS, decontamination.KEY)}

        yield _Input(decontamination.KEY, path, "", evaluation_texts)


def _targets(key: str, path: str, name: str) -> _Input:
    return _Input(key, path, name, lambda: {f"{name}: files": files.find(path, ("",), key)})


def current(recipe: Recipe, sources: dict[str, Source], digests: SourceDigests) -> dict[str, str]:
    """Return a map from the name of every input to its current fingerprint.

    Raises:
        RequestError: there is nothing at a path.
    """
    entries = {name: value for item in _inputs(recipe, sources) for name, value in item.look_up().items()}
    return _fingerprints(entries, digests)


def _fingerprints(entries: Mapping[str, str | dict[str, File]], digests: SourceDigests) -> dict[str, str]:
    return {name: value if isinstance(value, str) else digests.of(name, value) for name, value in entries.items()}


def changes(recorded: dict[str, str], now: dict[str, str], digests: SourceDigests) -> str:
    """Describe how an artefact's recorded and current inputs differ, including the changed files if they are known."""
    lines = []
    for name in sorted(name for name in {*recorded, *now} if recorded.get(name) != now.get(name)):
        names = digests.changed(name, recorded.get(name))
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        lines.append(f"{name.removesuffix(': files')}: {', '.join(names[:_SHOWN])}{more}" if names else name)
    return "; ".join(lines)


def local_paths(recipe: Recipe, sources: dict[str, Source]) -> dict[str, str]:
    """Return a map from recipe key to path for the inputs on this machine, for the manifest's details."""
    inputs = _inputs(recipe, sources)
    return {item.key: item.path for item in inputs if item.path is not None and _exists_here(item.path)}


def current_or_recorded(
    recipe: Recipe, sources: dict[str, Source], published: Manifest | None, target: Path, digests: SourceDigests
) -> dict[str, str]:
    """Like ``current``, but use the recorded fingerprints of inputs that were removed or are unreachable.

    Args:
        recipe: the recipe.
        sources: the recipe's sources by name.
        published: the manifest of ``target``. It is used only if its identity matches the recipe and, for an input on
            this machine, only if the input was read from the same path.
        target: the documents artefact.
        digests: known digests of the sources' files.

    Raises:
        RequestError: an input cannot be found, and there is no record of it.
        UnreachableError: an input cannot be reached over the network, and there is no record of it.
    """
    identity = fingerprint.of_value(documents_identity(recipe))
    if published is not None and fingerprint.of_value(published.identity) != identity:
        published = None
    paths = published.details["paths"] if published else {}

    def recorded(item: _Input, why: str) -> dict[str, str]:
        print(f"{target}: kept without comparing it to its source: {why}", file=sys.stderr)
        inputs = published.inputs if published is not None else {}
        return {key: value for key, value in inputs.items() if key.rpartition(": ")[0] == item.name}

    entries: list[tuple[_Input, Mapping[str, str | dict[str, File]]]] = []
    for item in _inputs(recipe, sources):
        if item.path is not None and paths.get(item.key) == item.path and not _exists_here(item.path):
            entries.append((item, recorded(item, f"{item.key}: {item.path} no longer exists")))
            continue
        try:
            entries.append((item, item.look_up()))
        except UnreachableError as error:
            if published is None:
                raise
            entries.append((item, recorded(item, str(error))))
    # Hash files, and record their digests, only after all inputs have been looked up.
    now: dict[str, str] = {}
    for item, values in entries:
        try:
            now |= _fingerprints(values, digests)
        except UnreachableError as error:
            if published is None:
                raise
            now |= recorded(item, str(error))
    if published is not None and published.inputs != now:
        print(f"{target}: the source has changed: {changes(published.inputs, now, digests)}", file=sys.stderr)
    return now


def _exists_here(path: str) -> bool:
    """Return whether a local file exists at or below the path, or matches it as a pattern. True if access is denied."""
    if remote.is_url(path.removeprefix("file://")):
        return False
    local = Path(path.removeprefix("file://")).expanduser()
    try:
        if local.is_dir():
            folders = os.walk(local, onerror=_raise, followlinks=True)
            return any(not name.startswith(".") for _, _, names in folders for name in names)
        # A dangling link counts as existing. pathlib can only glob below a folder.
        return (
            local.exists()
            or local.is_symlink()
            or any(not os.path.isdir(name) for name in glob.iglob(str(local), recursive=True))  # noqa: PTH112, PTH207
        )
    except OSError:
        return True


def _raise(error: OSError) -> NoReturn:
    raise error
