"""Data that weights were trained on are not replaced unasked: without them the weights are no run."""

from collections.abc import Callable, Iterator
from pathlib import Path

from artefacts import lock, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.training_folder import has_weights, is_requeued, read_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe


def guard(recipe: Recipe, name: str) -> Callable[[str], None]:
    """What a stage calls, with the reason, before it builds the artefact ``name`` in place of another.

    It raises ``RequestError`` where a training on it is running or has weights. Of this run they are moved aside with
    ``run.replace``; those of another run, which shares the data, keep them.
    """
    layout = RunLayout.of(recipe)

    def check(why: str) -> None:
        artefact: Path = getattr(layout, name)
        for run in _runs(recipe, layout):
            for folder in (run / "pretrain", run / "finetune"):
                if not _learns_from(folder, name, layout):
                    continue
                lock.refuse_if_held(folder, f"{folder}: a training on {artefact}, which this would replace, is run")
                own = run.absolute() == layout.run.absolute()
                if has_weights(folder) and not (own and recipe.run.may_replace(folder.name) and not is_requeued()):
                    wish = "finetune" if folder.name == "finetune" else "true"
                    cure = f"move data and weights aside (run.replace={wish})" if own else "keep its data (data.root=…)"
                    raise RequestError(
                        f"{folder} was trained on {artefact}, which this would replace ({why}): give the new run "
                        f"another name (run.name=…), or {cure}"
                    )

    return check


def _runs(recipe: Recipe, layout: RunLayout) -> Iterator[Path]:
    """Folders of the runs that may have learned from the data: this one, those next to it, and the data's own."""
    root = Path(recipe.run.root)
    others = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    yield from dict.fromkeys([layout.run, layout.data, *others])


def _learns_from(folder: Path, name: str, layout: RunLayout) -> bool:
    """Whether a training folder's run learns from the artefact that is there now, at first hand or further on."""
    inputs = read_identity(folder).get("inputs", {})
    now = _manifest(getattr(layout, name)) if inputs else None
    if now is None:
        return False
    if inputs.get(name) == now.fingerprint:
        return True
    for user in (layout.tokens, layout.examples) if name == "documents" else ():
        built = _manifest(user)
        if built and built.inputs.get(name) == now.fingerprint and inputs.get(user.name) == built.fingerprint:
            return True
    return False


def _manifest(folder: Path) -> Manifest | None:
    try:
        return manifest.read(folder)
    except RequestError:  # damaged: nothing is lost with it
        return None
