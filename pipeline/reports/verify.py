"""Check every artefact of a run against its manifest, and check that the artefacts belong together."""

import shlex
from contextlib import suppress
from pathlib import Path

from artefacts import command_hints, fingerprint, manifest, repair_hints
from artefacts.differences import explained
from artefacts.errors import RequestError
from artefacts.pages.formats import compact
from artefacts.training_folder import (
    CHECKPOINTS,
    IDENTITY,
    checkpoints,
    finished,
    has_weights,
    read_identity_file,
)
from configs.checks import run_weights
from configs.identities import documents_identity
from configs.run_layout import EXAMPLES_OF, RunLayout
from configs.schema import Recipe

#: Artefact -> the artefacts that it is built from. Their fingerprints must match the inputs in its manifest.
_INPUTS: dict[str, tuple[str, ...]] = {
    "documents": (),
    "tokenizer": ("documents",),
    "tokens": ("documents", "tokenizer"),
    "packing": ("tokens",),
    "examples": ("documents", "tokenizer", "tokens"),
    "evaluation": ("tokens", "examples"),
    "export": (),
}


def verify(recipe: Recipe, recipe_path: str) -> tuple[list[str], list[str]]:
    """Check every artefact and every checkpoint of a run.

    Returns:
        A line for each intact artefact, and a line for each problem with its fix.

    Raises:
        RequestError: there are no artefacts.
    """
    layout = RunLayout.of(recipe)
    folders: dict[str, Path] = {name: getattr(layout, name) for name in _INPUTS}
    existing = {name: [folder] for name, folder in folders.items() if folder.exists()}
    stages = [stage for stage in ("pretrain", *layout.finetuned()) if layout.training(stage).exists()]
    if recipe.task == "language_modeling" and layout.examples.exists():
        # A folder per fine-tuning stage.
        stage_folders = (path for path in sorted(layout.examples.glob("[!.]*")) if path.is_dir())
        existing["examples"] = [path for path in stage_folders if path.name != "previous"]
    if not any(existing.values()) and not stages:
        raise RequestError(f"{layout.data} has no artefact: run `{command_hints.make('data', recipe_path)}` first")
    intact: list[str] = []
    faults: list[str] = []
    for name, folder in ((name, folder) for name, several in existing.items() for folder in several):
        fix = repair_hints.hint(name, folder, recipe_path)
        faults_here = _damage(folder) or _strangers(name, folder, folders) or _other_weights(name, folder, layout)
        _report(folder, faults_here, fix, intact, faults)
        if name in ("documents", "examples") and not faults_here:
            _compare_source(name, recipe, recipe_path, folder, intact, faults)
    for stage in stages:
        _check_training(stage, layout, recipe_path, intact, faults)
    return intact, faults


def _compare_source(
    name: str, recipe: Recipe, recipe_path: str, folder: Path, intact: list[str], faults: list[str]
) -> None:
    """Compare the recorded inputs of documents or examples with the recipe's current ones. Reads all source files."""
    from pipeline.documents import input_fingerprints
    from pipeline.examples import reading
    from pipeline.sources.registry import open_sources
    from pipeline.sources.storage.digests import SourceDigests

    published = manifest.read(folder)
    assert published is not None
    digests = SourceDigests(folder, trusted=False)
    layout = RunLayout.of(recipe)
    stage = next((stage for stage in recipe.finetune if folder == layout.examples_of(stage.name)), None)
    trained = has_weights(layout.training(stage.name if stage else "pretrain"))
    command = command_hints.make(repair_hints.TARGETS[name], recipe_path, *(["run.replace=true"] if trained else []))
    again = f"repair: `{command}`, which moves these {name} aside"
    if name == "documents" and fingerprint.of_value(published.identity) != fingerprint.of_value(
        documents_identity(recipe)
    ):
        why = explained(published.identity, {}, documents_identity(recipe), {})
        faults.append(f"{folder}: built with other keys ({why}): use the ARGS they were built with, or {again}")
        return
    try:
        if name == "documents":
            before, now = published.inputs, input_fingerprints.current(recipe, open_sources(recipe), digests)
        elif "files" in published.inputs and stage and stage.examples.path:
            before = {"files": published.inputs["files"]}
            now = reading.inputs(stage.examples, digests, recipe.stage_key(stage, "examples"))
        else:
            return
    except RequestError as error:
        intact.append(f"{folder}: not compared with its source: {error}")
        return
    if before != now:
        changes = input_fingerprints.changes(before, now, digests)
        faults.append(f"{folder}: stale: the source has changed since ({changes}); {again}")


def _check_training(name: str, layout: RunLayout, recipe_path: str, intact: list[str], faults: list[str]) -> None:
    """Check each checkpoint, the folder's own files, and whether the data has changed since training."""
    folder, target = layout.training(name), run_weights.target(name)
    again = command_hints.make(target, recipe_path)
    for number, checkpoint in enumerate(checkpoints(folder)):
        path = shlex.quote(str(checkpoint))
        resumes = "resumes from the checkpoint before it" if number else "starts over, because there is none before it"
        fix = f"repair: `mv {path} {path}.damaged && {again}`, which {resumes}"
        if _is_of_another_version(checkpoint):
            fix = "it may be intact: use that version"
        _report(checkpoint, _damage(checkpoint), fix, intact, faults)
    if checkpoints(folder) and not read_identity_file(folder):
        faults.append(f"{folder / IDENTITY}: missing or damaged; repair: `{again}`, which restores it")
    if why := run_weights.stale(layout, name):
        faults.append(
            f"{folder}: stale: {why}; repair: `{command_hints.make(target, recipe_path, 'run.replace=true')}`"
        )
    try:
        published = manifest.read(folder)
    except (manifest.DamagedError, manifest.OtherFormatError) as error:
        remove = (
            f"rm {shlex.quote(str(folder / manifest.NAME))} && " if isinstance(error, manifest.OtherFormatError) else ""
        )
        faults.append(f"{error.fault}; repair: `{remove}{again}`, which restores it")
        return
    except RequestError as error:
        faults.append(str(error))
        return
    if published is not None and not (last := folder / CHECKPOINTS / str(published.details.get("checkpoint"))).is_dir():
        faults.append(f"{last}: missing; repair: `{again}`, which resumes from the newest checkpoint")


def _is_of_another_version(folder: Path) -> bool:
    try:
        manifest.read(folder)
    except manifest.OtherFormatError:
        return True
    except RequestError:
        return False
    return False


def _other_weights(name: str, folder: Path, layout: RunLayout) -> list[str]:
    """Return a line if an evaluation or export was built from weights other than the run's current ones."""
    published = manifest.read(folder)
    assert published is not None
    now: dict[str, str] = {}
    if name == "export":
        stage = published.details.get("stage")
        for newest in checkpoints(layout.training(stage))[-1:] if stage else []:
            with suppress(RequestError):
                saved, ended = manifest.read(newest), finished(layout.training(str(stage)))
                now |= {"checkpoint": saved.fingerprint} if saved else {}
                now |= {"checkpoint": ended.details["weights"]} if ended else {}
    if name == "evaluation":
        for stage in ("pretrain", *layout.finetuned()):
            with suppress(RequestError):  # reported when the stage is checked
                last = finished(layout.training(stage))
                now |= {stage: last.details["weights"]} if last else {}
    others = [key for key, value in now.items() if published.inputs.get(key, value) != value]
    if not others:
        return []
    return [f"{folder}: stale: built from weights other than the run's current ones ({', '.join(others)})"]


def _report(folder: Path, faults_here: list[str], fix: str, intact: list[str], faults: list[str]) -> None:
    faults += [f"{fault}; {fix}" for fault in faults_here]
    if not faults_here:
        published = manifest.read(folder)
        assert published is not None
        size = sum(entry["bytes"] for entry in published.files.values())
        count = f"{len(published.files)} file{'' if len(published.files) == 1 else 's'}"
        intact.append(f"{folder}: intact, {count}, {compact(size, 'B')}")


def _damage(folder: Path) -> list[str]:
    try:
        return manifest.faults(folder)
    except RequestError as error:
        return [_fault(error)]


def _fault(error: RequestError) -> str:
    """Return the error message without its general advice, because the caller adds a more specific fix."""
    return error.fault if isinstance(error, (manifest.DamagedError, manifest.OtherFormatError)) else str(error)


def _strangers(name: str, folder: Path, folders: dict[str, Path]) -> list[str]:
    """Return a line for each input artefact that has changed on disk since this artefact was built."""
    published = manifest.read(folder)
    assert published is not None
    others = {other: folders[other] for other in _INPUTS[name] if other in published.inputs}
    for key in published.inputs:
        if key.startswith(EXAMPLES_OF):
            others[key] = folders["examples"] / key.removeprefix(EXAMPLES_OF)
    lines = []
    for other, path in others.items():
        try:
            now = manifest.read(path)
        except RequestError:
            continue
        if now is not None and published.inputs[other] != now.fingerprint:
            what = "examples" if other.startswith(EXAMPLES_OF) else other
            lines.append(f"{folder}: built from a different {what} artefact than {path}")
    return lines
