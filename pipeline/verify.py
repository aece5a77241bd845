"""Re-check every artefact of a run against its manifest, and that the data artefacts belong together."""

from pathlib import Path

from artefacts import fingerprint, manifest, repair
from artefacts.layout import RunLayout
from artefacts.pages.formats import compact
from configs.errors import RequestError
from configs.schema import Recipe

#: Artefact -> the artefacts whose fingerprints must be those that went into it.
_MADE_FROM: dict[str, tuple[str, ...]] = {
    "documents": (),
    "tokenizer": ("documents",),
    "tokens": ("documents", "tokenizer"),
    "packing": ("tokens",),
    "examples": ("documents", "tokenizer", "tokens"),
    "evaluation": (),
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
    there = {name: folder for name, folder in folders.items() if folder.exists()}
    if not there:
        raise RequestError(
            f"{layout.data} holds no artefact: run `{repair.with_recipe('python -m pipeline run', recipe_path)}` first"
        )
    whole: list[str] = []
    faults: list[str] = []
    for name, folder in there.items():
        if name in _TRAINED:
            _check_training(name, folder, whole, faults)
        else:
            cure = repair.cure(name, folder, recipe_path)
            found = _damage(folder) or _strangers(name, folder, folders)
            _note(folder, found, cure, whole, faults)
            if name == "documents" and not found:
                _compare_source(recipe, recipe_path, folder, whole, faults)
    return whole, faults


def _compare_source(recipe: Recipe, recipe_path: str, folder: Path, whole: list[str], faults: list[str]) -> None:
    """Whether the documents were made from what the recipe names now, where that can be read."""
    from pipeline import documents, origin

    made = manifest.read(folder)
    assert made is not None
    try:
        now = origin.inputs(recipe, documents.opened(recipe))
    except RequestError as error:
        whole.append(f"{folder}: not compared with its source: {error}")
        return
    again = (
        f"repair: {repair.with_recipe(repair.COMMANDS['documents'], recipe_path)}, which moves these documents aside"
    )
    if fingerprint.of_value(made.identity) != fingerprint.of_value(documents.identity(recipe)):
        faults.append(f"{folder}: stale: the recipe's data section has changed since; {again}")
    elif made.inputs != now:
        changed = sorted(name for name in {*made.inputs, *now} if made.inputs.get(name) != now.get(name))
        faults.append(f"{folder}: stale: the source has changed since ({', '.join(changed)}); {again}")


def _check_training(name: str, folder: Path, whole: list[str], faults: list[str]) -> None:
    """Check each checkpoint, and the manifest of the folder where the training is finished."""
    for checkpoint in sorted((folder / "checkpoints").glob("step-*")):
        cure = f"repair: rm -r {checkpoint} && make {name}, which goes on from the checkpoint before it"
        _note(checkpoint, _damage(checkpoint), cure, whole, faults)
    again = f"make {name}, which goes on from the newest checkpoint"
    try:
        made = manifest.read(folder)
    except RequestError as error:
        faults.append(f"{_fault(error)}; repair: rm {folder / manifest.NAME} && {again}")
        return
    if made is not None and not (last := folder / "checkpoints" / str(made.details.get("checkpoint"))).is_dir():
        faults.append(f"{last}: missing; repair: {again}")


def _note(folder: Path, found: list[str], cure: str, whole: list[str], faults: list[str]) -> None:
    faults += [f"{fault}; {cure}" for fault in found]
    if not found:
        made = manifest.read(folder)
        assert made is not None
        size = sum(entry["bytes"] for entry in made.files.values())
        whole.append(f"{folder}: whole, {len(made.files)} files, {compact(size, 'B')}")


def _damage(folder: Path) -> list[str]:
    try:
        return manifest.faults(folder)
    except RequestError as error:
        return [_fault(error)]


def _fault(error: RequestError) -> str:
    """What is wrong, without the general cure where there is one: ours is more to the point."""
    return error.fault if isinstance(error, manifest.DamagedError) else str(error)


def _strangers(name: str, folder: Path, folders: dict[str, Path]) -> list[str]:
    """A line for each artefact on disk that is not the one this whole artefact was made from."""
    made = manifest.read(folder)
    assert made is not None
    found = []
    for other in _MADE_FROM[name]:
        try:
            now = manifest.read(folders[other])
        except RequestError:
            continue
        if other in made.inputs and now is not None and made.inputs[other] != now.fingerprint:
            found.append(f"{folder}: made from another {other} than {folders[other]}")
    return found
