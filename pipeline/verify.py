"""Re-check every data artefact of a run against its manifest, and that they belong together."""

from pathlib import Path

from artefacts import manifest
from artefacts.layout import RunLayout
from configs.errors import RequestError
from configs.schema import Recipe

#: Artefact -> the command that makes it and the artefacts that go into it.
_MADE_BY = {
    "documents": ("python -m pipeline clean", ()),
    "tokenizer": ("python -m tokenizer train", ("documents",)),
    "tokens": ("python -m pipeline tokenize", ("documents", "tokenizer")),
    "examples": ("python -m pipeline examples", ("tokenizer", "tokens")),
}


def verify(recipe: Recipe, recipe_path: str) -> tuple[list[str], list[str]]:
    """Check every artefact that is there.

    Returns:
        A line for each whole artefact, and a line for each fault, the cure in it.

    Raises:
        RequestError: none is there.
    """
    layout = RunLayout.of(recipe)
    folders = {name: getattr(layout, name) for name in _MADE_BY}
    there = {name: folder for name, folder in folders.items() if folder.exists()}
    if not there:
        raise RequestError(f"{layout.data} holds no data artefact: run `python -m pipeline run` first")
    whole, faults = [], []
    for name, folder in there.items():
        cure = f"repair: rm -r {folder} && {_MADE_BY[name][0]} --recipe {recipe_path}, with the same overrides"
        found = _faults(name, folder, folders)
        faults += [f"{fault}; {cure}" for fault in found]
        if not found:
            made = manifest.read(folder)
            assert made is not None
            size = sum(entry["bytes"] for entry in made.files.values())
            whole.append(f"{folder}: whole, {len(made.files)} files, {size / 1e6:.1f} MB")
    return whole, faults


def _faults(name: str, folder: Path, folders: dict[str, Path]) -> list[str]:
    try:
        found = manifest.faults(folder)
        made = manifest.read(folder)
    except RequestError as error:
        return [str(error)]
    if made is None:
        return found
    for other in _MADE_BY[name][1]:
        try:
            now = manifest.read(folders[other])
        except RequestError:
            continue
        if other in made.inputs and now is not None and made.inputs[other] != now.fingerprint:
            found.append(f"{folder}: made from another {other} than {folders[other]}")
    return found
