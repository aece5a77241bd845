"""Data that weights of this run were trained on are not replaced unasked: without them the weights are no run."""

from collections.abc import Callable
from pathlib import Path

from artefacts import lock, manifest
from artefacts.layout import RunLayout
from artefacts.training_folder import has_weights, read_identity
from configs.errors import RequestError
from configs.schema import Recipe


def guard(recipe: Recipe, name: str) -> Callable[[str], None]:
    """What a stage calls, with the reason, before it builds the artefact ``name`` in place of another.

    It raises ``RequestError`` where a training of this run goes on or has weights, unless ``run.replace`` is set and
    no training is running.
    """
    layout = RunLayout.of(recipe)

    def check(why: str) -> None:
        for folder in (layout.pretrain, layout.finetune):
            if not _learns_from(folder, name, layout):
                continue
            lock.refuse_if_held(
                folder, f"{folder}: a training on {getattr(layout, name)}, which this would replace, is run"
            )
            if has_weights(folder) and not recipe.run.replace:
                raise RequestError(
                    f"{folder} was trained on {getattr(layout, name)}, which this would replace ({why}): give the new "
                    "run another name (run.name=…), or move data and weights aside (run.replace=true)"
                )

    return check


def _learns_from(folder: Path, name: str, layout: RunLayout) -> bool:
    """Whether a training folder's run learns from the artefact that is there now, at first hand or further on."""
    now = manifest.read(getattr(layout, name))
    if now is None:
        return False
    inputs = read_identity(folder).get("inputs", {})
    if inputs.get(name) == now.fingerprint:
        return True
    users = (layout.tokens, layout.examples) if name == "documents" else ()
    for user in users:
        made = manifest.read(user)
        if made and made.inputs.get(name) == now.fingerprint and inputs.get(user.name) == made.fingerprint:
            return True
    return False
