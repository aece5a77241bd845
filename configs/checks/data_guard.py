"""A guard that prevents replacing data that weights were trained on, unless the recipe allows it."""

from collections.abc import Callable, Iterator
from pathlib import Path

from artefacts import lock, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.training_folder import IDENTITY, has_weights, is_requeued, read_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe


def guard(recipe: Recipe, name: str, stage: str | None = None) -> Callable[[str], None]:
    """Return a function that a stage calls, with its reason, before it replaces the artefact ``name``.

    ``stage`` is the fine-tuning stage that chat examples are for. Other stages may have equal examples in folders of
    their own, so their weights do not count.

    The function raises ``RequestError`` if a training run that uses the artefact is active or has weights. With
    ``run.replace``, this run's own weights do not count, because they are moved aside later. Weights of another run
    that shares the data always count.
    """
    layout = RunLayout.of(recipe)
    replaced: Path = layout.examples_of(stage) if stage else getattr(layout, name)

    def check(why: str) -> None:
        for run in _runs(recipe, layout):
            for folder in (run / "pretrain", *sorted(path.parent for path in run.glob(f"finetune/*/{IDENTITY}"))):
                if stage not in (None, folder.name) or not _learns_from(folder, name, replaced, layout):
                    continue
                lock.refuse_if_held(folder, f"{folder}: a training on {replaced}, which this would replace, is run")
                is_this_run = run.absolute() == layout.run.absolute()
                verb = "pretrain" if folder.name == "pretrain" else "finetune"
                may_replace = is_this_run and recipe.run.may_replace(verb) and not is_requeued()
                if has_weights(folder) and not may_replace:
                    value = "finetune" if verb == "finetune" else "true"
                    move = f"move data and weights aside (run.replace={value})"
                    fix = move if is_this_run else "keep its data (data.root=…)"
                    raise RequestError(
                        f"{folder} was trained on {replaced}, which this would replace ({why}): give the new run "
                        f"another name (run.name=…), or {fix}"
                    )

    return check


def _runs(recipe: Recipe, layout: RunLayout) -> Iterator[Path]:
    """Yield the folders of all runs that may use the data: this run, the run in the data folder, and other runs."""
    root = Path(recipe.run.root)
    others = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    yield from dict.fromkeys([layout.run, layout.data, *others])


def _learns_from(folder: Path, name: str, artefact: Path, layout: RunLayout) -> bool:
    """Return whether the run in a training folder was trained on the current artefact, directly or indirectly."""
    inputs = read_identity(folder).get("inputs", {})
    now = _manifest(artefact) if inputs else None
    if now is None:
        return False
    if inputs.get(name) == now.fingerprint:
        return True
    users = {"tokens": layout.tokens, "examples": layout.examples} if name == "documents" else {}
    for user, path in users.items():
        built = _manifest(path)
        if built and built.inputs.get(name) == now.fingerprint and inputs.get(user) == built.fingerprint:
            return True
    return False


def _manifest(folder: Path) -> Manifest | None:
    try:
        return manifest.read(folder)
    except RequestError:  # damaged or unreadable, so there is nothing to protect
        return None
