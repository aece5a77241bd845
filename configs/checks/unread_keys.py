"""Rejection of overrides that a command does not read and would otherwise silently ignore.

Overrides that agree with the existing run are allowed, so that the same ARGS work for every command of a run.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from artefacts import command_hints, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from configs.checks.changed_keys import changed_keys
from configs.checks.command_keys import READS, is_read, keys_of_target
from configs.identities import documents_identity, tokenizer_identity, tokens_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.base import Section

#: Environment variable with the targets of the ``make`` that runs this command. Keys that they read are allowed too.
TARGETS = "MILLRACE_TARGETS"

#: Sections that describe what a run trains, and how.
_OF_A_RUN = ("model.", "train.", "finetune.", "data.", "tokenizer.")
#: Suffixes of data keys that change the training but not the data.
_NOT_OF_THE_DATA = (".weight", ".revision")
#: Commands that inspect a run, whether it is trained or not.
_LOOK_AT_A_RUN = ("verify", "stats", "rejected", "report", "encode", "decode", "tokenizer inspect")
#: Placeholder for the value of a key that does not exist.
_MISSING = object()
#: Placeholder for the value of a key in a damaged file.
_UNKNOWN = object()


def check(command: str, recipe: Recipe, overrides: Sequence[str]) -> None:
    """Raise ``RequestError`` for an override that the command does not read, unless it agrees with the existing run."""
    targets = os.environ.get(TARGETS, "").split()
    read = [*READS[command]]
    for target in targets:
        read += keys_of_target(target)
    for override in overrides:
        key = override.partition("=")[0]
        if not is_read(key, read):
            _check_recorded(command, recipe, key)


def _check_recorded(command: str, recipe: Recipe, key: str) -> None:
    layout, wanted = RunLayout.of(recipe), _value(recipe.model_dump(mode="json", by_alias=True), key)
    of_data = key.startswith(("data.", "tokenizer."))
    if of_data and _manifest(layout.documents):
        if why := _difference(recipe, layout, key):
            raise RequestError(
                f"{command} does not read {key}, and the data were built with another value ({why}): leave it out, or "
                f"run `{command_hints.make('data')}` first"
            )
        if not key.endswith(_NOT_OF_THE_DATA):
            return
    if not _is_identity(recipe, key):
        return
    folder = layout.pretrain
    if key.startswith("finetune."):
        if (stage := _stage_of(recipe, key)) is None:
            return
        folder = layout.finetune(stage)
    recorded = _recorded(folder / "recipe.yaml", key)
    if recorded is _UNKNOWN or _same(key, recorded, wanted):
        return
    # Before training has started, commands that inspect the data accept all keys of the run.
    if recorded is _MISSING and command in _LOOK_AT_A_RUN and key.startswith(_OF_A_RUN):
        return
    was = f", which was {recorded} in {folder}" if recorded is not _MISSING and key.startswith(_OF_A_RUN) else ""
    raise RequestError(f"{command} does not read {key}{was}: leave it out")


def _is_identity(recipe: Recipe, key: str) -> bool:
    """Return whether a key is part of the run's identity. Topology, logging and retention are not."""
    section, _, rest = key.partition(".")
    held: Section | None = {"train": recipe.train_section, "model": recipe.model_section}.get(section)
    if section == "finetune" and rest:
        stage = _stage_of(recipe, key)
        held, rest = recipe.stage(stage) if stage else None, rest.removeprefix(f"{stage}.")
    if held is not None:
        return _value(held.identity(), rest) is not _MISSING
    return section != "launch"


def _stage_of(recipe: Recipe, key: str) -> str | None:
    """Return the name of the fine-tuning stage that a key belongs to, or None if the recipe has no such stage."""
    names = [stage.name for stage in recipe.finetune]
    named = key.split(".")[1]
    return named if named in names else names[0] if names else None


def _same(key: str, recorded: Any, wanted: Any) -> bool:
    """Return whether a value equals the recorded value. Paths are equal if they resolve to the same location."""
    if recorded == wanted:
        return True
    paths = key.endswith("path") and isinstance(recorded, str) and isinstance(wanted, str)
    return paths and Path(recorded).resolve() == Path(wanted).resolve()


def _difference(recipe: Recipe, layout: RunLayout, key: str) -> str:
    """Describe how a data key's value differs from the value used to build the data. Empty if it does not differ."""
    artefacts = (
        (layout.documents, documents_identity(recipe)),
        (layout.tokenizer, tokenizer_identity(recipe)),
        (layout.tokens, tokens_identity(recipe)),
    )
    for folder, identity in artefacts:
        built = _manifest(folder)
        for line in changed_keys(built.identity, identity) if built else ():
            if is_read(line.partition(" ")[0], [key]):
                return f"{folder}: {line}"
    documents = _manifest(layout.documents)
    path = _value(recipe.model_dump(mode="json", by_alias=True), key)
    recorded = documents.details.get("paths", {}).get(key, path) if documents else path
    return "" if recorded == path else f"{layout.documents}: {key} {recorded} -> {path}"


def _manifest(folder: Path) -> Manifest | None:
    """Return an artefact's manifest, or None if it is missing or damaged. Other checks report damage."""
    try:
        return manifest.read(folder)
    except RequestError:
        return None


def _recorded(path: Any, key: str) -> Any:
    """Return the value of a key in a training run's recorded recipe.

    Returns ``_MISSING`` if there is no recipe or no such key, and ``_UNKNOWN`` if the recipe is damaged.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _value(tree, key) if isinstance(tree, dict) else _UNKNOWN
    except FileNotFoundError:
        return _MISSING
    except (OSError, ValueError, yaml.YAMLError):
        return _UNKNOWN


def _value(tree: Any, key: str) -> Any:
    """Return the value of a dotted key, or ``_MISSING`` if there is no such key."""
    names = key.split(".")
    while names:
        name = names.pop(0)
        if isinstance(tree, list) and tree and all(isinstance(stage, dict) for stage in tree):
            # Fine-tuning stages. A key without a name belongs to the only one.
            stages = {stage.get("name"): stage for stage in tree}
            if name in stages:
                tree = stages[name]
                continue
            tree = tree[0] if len(tree) == 1 else {}
        if not isinstance(tree, dict) or name not in tree:
            return _MISSING
        tree = tree[name]
    return tree
