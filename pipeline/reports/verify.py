"""Re-check every artefact of a run against its manifest, and that the data artefacts belong together."""

import shlex
from contextlib import suppress
from pathlib import Path

from artefacts import command_hints, fingerprint, manifest, repair_hints
from artefacts.differences import explained
from artefacts.errors import RequestError
from artefacts.pages.formats import compact
from artefacts.training_folder import IDENTITY, checkpoints, finished, has_weights, own_identity
from configs.checks import run_weights
from configs.identities import documents_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe

#: Artefact -> the artefacts whose fingerprints must be those that went into it.
_MADE_FROM: dict[str, tuple[str, ...]] = {
    "documents": (),
    "tokenizer": ("documents",),
    "tokens": ("documents", "tokenizer"),
    "packing": ("tokens",),
    "examples": ("documents", "tokenizer", "tokens"),
    "evaluation": ("tokens", "examples"),
    "export": (),
}
#: Training folders; each is also the name of the make target that fills it.
_TRAINED = ("pretrain", "finetune")


def verify(recipe: Recipe, recipe_path: str) -> tuple[list[str], list[str]]:
    """Check every artefact and every checkpoint that is there.

    Returns:
        A line for each whole artefact, and a line for each fault, the cure in it.

    Raises:
        RequestError: none is there.
    """
    layout = RunLayout.of(recipe)
    folders: dict[str, Path] = {name: getattr(layout, name) for name in (*_MADE_FROM, *_TRAINED)}
    existing = {name: folder for name, folder in folders.items() if folder.exists()}
    if not existing:
        raise RequestError(f"{layout.data} holds no artefact: run `{command_hints.make('data', recipe_path)}` first")
    whole: list[str] = []
    faults: list[str] = []
    for name, folder in existing.items():
        if name in _TRAINED:
            _check_training(name, layout, recipe_path, whole, faults)
        else:
            cure = repair_hints.hint(name, folder, recipe_path)
            faults_here = _damage(folder) or _strangers(name, folder, folders) or _other_weights(name, folder, layout)
            _note(folder, faults_here, cure, whole, faults)
            if name in ("documents", "examples") and not faults_here:
                _compare_source(name, recipe, recipe_path, folder, whole, faults)
    return whole, faults


def _compare_source(
    name: str, recipe: Recipe, recipe_path: str, folder: Path, whole: list[str], faults: list[str]
) -> None:
    """Whether documents or examples were made from what the recipe names now, all of it read, where that can be."""
    from pipeline.documents import input_fingerprints
    from pipeline.examples import instructions
    from pipeline.sources.registry import open_sources
    from pipeline.sources.storage.digests import SourceDigests

    published = manifest.read(folder)
    assert published is not None
    digests = SourceDigests(folder, trusted=False)
    layout = RunLayout.of(recipe)
    trained = has_weights(layout.pretrain if name == "documents" else layout.finetune)
    command = command_hints.make(repair_hints.TARGETS[name], recipe_path, *(["run.replace=true"] if trained else []))
    again = f"repair: `{command}`, which moves these {name} aside"
    if name == "documents" and fingerprint.of_value(published.identity) != fingerprint.of_value(
        documents_identity(recipe)
    ):
        why = explained(published.identity, {}, documents_identity(recipe), {})
        faults.append(f"{folder}: made with other keys ({why}): give the ARGS that they were made with, or {again}")
        return
    try:
        if name == "documents":
            before, now = published.inputs, input_fingerprints.current(recipe, open_sources(recipe), digests)
        elif "files" in published.inputs and recipe.finetune and recipe.finetune.examples.path:
            before = {"files": published.inputs["files"]}
            now = instructions.fingerprints(recipe.finetune.examples.path, digests)
        else:
            return
    except RequestError as error:
        whole.append(f"{folder}: not compared with its source: {error}")
        return
    if before != now:
        changes = input_fingerprints.changes(before, now, digests)
        faults.append(f"{folder}: stale: the source has changed since ({changes}); {again}")


def _check_training(name: str, layout: RunLayout, recipe_path: str, whole: list[str], faults: list[str]) -> None:
    """Check each checkpoint, the folder's own files, and whether the data are those that it was trained on."""
    folder: Path = getattr(layout, name)
    again = command_hints.make(name, recipe_path)
    for number, checkpoint in enumerate(checkpoints(folder)):
        here = shlex.quote(str(checkpoint))
        resumes = "resumes from the checkpoint before it" if number else "begins again, as there is none before it"
        cure = f"repair: `mv {here} {here}.damaged && {again}`, which {resumes}"
        if _is_of_another_version(checkpoint):
            cure = "it may be whole: use that version"
        _note(checkpoint, _damage(checkpoint), cure, whole, faults)
    if checkpoints(folder) and not own_identity(folder):
        faults.append(f"{folder / IDENTITY}: missing or damaged; repair: `{again}`, which writes it again")
    if why := run_weights.stale(layout, name):
        faults.append(f"{folder}: stale: {why}; repair: `{command_hints.make(name, recipe_path, 'run.replace=true')}`")
    try:
        published = manifest.read(folder)
    except (manifest.DamagedError, manifest.OtherFormatError) as error:
        remove = (
            f"rm {shlex.quote(str(folder / manifest.NAME))} && " if isinstance(error, manifest.OtherFormatError) else ""
        )
        faults.append(f"{error.fault}; repair: `{remove}{again}`, which writes it again")
        return
    except RequestError as error:
        faults.append(str(error))
        return
    if (
        published is not None
        and not (last := folder / "checkpoints" / str(published.details.get("checkpoint"))).is_dir()
    ):
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
    """A line where an evaluation or an export is not of the weights that the run has now."""
    published = manifest.read(folder)
    assert published is not None
    now: dict[str, str] = {}
    if name == "export":
        stage = str(published.details.get("stage"))
        for newest in checkpoints(layout.run / stage)[-1:] if stage in _TRAINED else []:
            with suppress(RequestError):
                saved = manifest.read(newest)
                now |= {"checkpoint": saved.fingerprint} if saved else {}
    if name == "evaluation":
        for stage in _TRAINED:
            with suppress(RequestError):  # which is named where the stage is checked
                last = finished(getattr(layout, stage))
                now |= {stage: last.details["weights"]} if last else {}
    others = [key for key, value in now.items() if published.inputs.get(key, value) != value]
    return [f"{folder}: stale: made of other weights than the run has now ({', '.join(others)})"] if others else []


def _note(folder: Path, faults_here: list[str], cure: str, whole: list[str], faults: list[str]) -> None:
    faults += [f"{fault}; {cure}" for fault in faults_here]
    if not faults_here:
        published = manifest.read(folder)
        assert published is not None
        size = sum(entry["bytes"] for entry in published.files.values())
        whole.append(f"{folder}: whole, {len(published.files)} files, {compact(size, 'B')}")


def _damage(folder: Path) -> list[str]:
    try:
        return manifest.faults(folder)
    except RequestError as error:
        return [_fault(error)]


def _fault(error: RequestError) -> str:
    """What is wrong, without the general cure where there is one: ours is more to the point."""
    return error.fault if isinstance(error, (manifest.DamagedError, manifest.OtherFormatError)) else str(error)


def _strangers(name: str, folder: Path, folders: dict[str, Path]) -> list[str]:
    """A line for each artefact on disk that is not the one this whole artefact was made from."""
    published = manifest.read(folder)
    assert published is not None
    lines = []
    for other in _MADE_FROM[name]:
        try:
            now = manifest.read(folders[other])
        except RequestError:
            continue
        if other in published.inputs and now is not None and published.inputs[other] != now.fingerprint:
            lines.append(f"{folder}: made from another {other} than {folders[other]}")
    return lines
