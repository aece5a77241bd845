"""Descriptions of the weights that a command reads, and checks that they are current."""

from pathlib import Path

from artefacts import command_hints, lock, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.training_folder import CHECKPOINTS, STOPPED_EARLY, finished, has_weights, read_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe

#: Name of the run input that holds the initial weights of a classifier's backbone.
BACKBONE = "backbone"
#: Name of the run input that holds the adapter that fine-tuning starts from.
ADAPTER = "adapter"
_STAGES = {"pretrain": "pretrained", "finetune": "fine-tuned"}


def line(checkpoint: Path, saved: Manifest, stale: str = "") -> str:
    """Describe weights in one line: their stage, their step, and whether they are final and current.

    Args:
        checkpoint: the checkpoint.
        saved: the checkpoint's manifest.
        stale: the reason why the weights are not current, from :func:`stale`.
    """
    run, step = saved.details.get("run", {}), saved.counts["step"]
    state = f"step {step}"
    if run.get("imported"):
        state = "imported"
    elif run:
        state += f" of {run['steps']}{'' if step == run['steps'] else _why_earlier(checkpoint, saved)}"
    note = f" (not current: {stale})" if stale else ""
    stage = _STAGES.get(run.get("stage", ""), "given")
    name = f" ({run['name']})" if run.get("stage") == "finetune" else ""
    return f"weights: {stage}{name}, {state}: {checkpoint}{note}"


def _why_earlier(checkpoint: Path, saved: Manifest) -> str:
    """Explain, after a comma, why a checkpoint is from an earlier step than the last step of its run."""
    folder = checkpoint.parents[1]
    try:
        ended = finished(folder) if checkpoint.parent.name == CHECKPOINTS else None
    except RequestError:
        ended = None
    is_used = ended is not None and ended.key == saved.key and ended.details["checkpoint"] == checkpoint.name
    if STOPPED_EARLY in saved.counts:
        return ", where training ended early"
    return ", the lowest validation loss" if is_used else ", training is not finished"


def is_only_pretrained(saved: Manifest) -> bool:
    """Return whether a checkpoint's weights were pretrained by Millrace, and neither fine-tuned nor imported."""
    run = saved.details.get("run", {})
    return run.get("stage") == "pretrain" and not run.get("imported")


def stale(layout: RunLayout, stage: str) -> str:
    """Say which artefacts have been replaced since a stage's weights were trained on them. Empty if none has.

    This includes the artefacts of the stages that it starts from. An artefact that was removed, or whose manifest
    cannot be read, does not count as replaced.
    """
    reasons: list[str] = []
    recorded = read_identity(layout.training(stage))
    for name, trained in recorded.get("inputs", {}).items():
        if name in (BACKBONE, ADAPTER):  # not artefacts of this run
            continue
        if name == "weights":
            start = recorded["identity"]["start_from"]
            source = layout.training(start)
            reasons += filter(None, [stale(layout, start)])
        else:
            chat = name == "examples" and stage != "pretrain"
            source = layout.examples_of(stage) if chat else getattr(layout, name)
        try:
            current = finished(source) if name == "weights" else manifest.read(source)
        except RequestError:
            continue
        now = current and (current.details["weights"] if name == "weights" else current.fingerprint)
        if now is not None and now != trained:
            reasons.append(f"{source} was replaced since")
    return ", ".join(reasons)


def wanted_stage(recipe: Recipe, layout: RunLayout) -> str:
    """Return the stage that ``generate.stage`` selects, by default the last stage that has weights.

    Raises:
        RequestError: the recipe has no such stage.
    """
    names, stage = [stage.name for stage in recipe.finetune], recipe.generate.stage
    if stage == "finetune":
        if not names:
            raise RequestError("generate.stage=finetune: the recipe has no finetune section")
        return names[-1]
    if stage is not None:
        return stage if stage == "pretrain" else recipe.stage(stage).name
    return next((name for name in reversed(names) if has_weights(layout.finetune(name))), "pretrain")


def check_tokenizer(checkpoint: Path, saved: Manifest, layout: RunLayout) -> None:
    """Raise ``RequestError`` if a checkpoint was not trained with the run's current tokenizer."""
    trained = saved.inputs.get("tokenizer")
    if trained is not None and trained != manifest.require(layout.tokenizer, "tokenizer").fingerprint:
        raise RequestError(
            f"{checkpoint} was trained with another tokenizer than {layout.tokenizer}, so its ids mean other text: "
            "use the recipe and ARGS that it was trained with, or train again"
        )


def check_finetuning(layout: RunLayout, stage: str) -> None:
    """Check that a fine-tuning stage's weights, which are used by default, are current.

    Raises:
        RequestError: the weights are not current; the message says what to do.
    """
    if why := stale(layout, stage):
        raise RequestError(
            f"{layout.finetune(stage)} is not current ({why}): fine-tune again "
            f"(`{command_hints.make('finetune', None, 'run.replace=finetune')}`), or choose the weights with "
            f"generate.stage={stage} or generate.stage=pretrain"
        )


def none_yet(layout: RunLayout, stage: str) -> RequestError:
    """Return the error for a stage without weights. The message says what exists, and which command to run."""
    folder = layout.training(stage)
    if lock.is_held(folder):
        return RequestError(
            f"{folder} has no checkpoint yet: the running training saves one every train.save_every steps"
        )
    begun = "has saved no checkpoint yet" if read_identity(folder) else "is not trained"
    return RequestError(f"{folder} {begun}: run `{command_hints.make(target(stage))}` first")


def target(stage: str) -> str:
    """Return the make target that trains a stage."""
    return "pretrain" if stage == "pretrain" else "finetune"


def unfinished(layout: RunLayout) -> list[str]:
    """Return a line for each stage that has started but not finished."""
    lines = []
    for stage in ("pretrain", *layout.finetuned()):
        folder = layout.training(stage)
        if read_identity(folder) and finished(folder) is None:
            saved = "its newest checkpoint is used" if has_weights(folder) else "it has no checkpoint yet"
            lines.append(f"{folder}: training is not finished; {saved}")
    return lines


def outdated(layout: RunLayout) -> list[str]:
    """Return a line for each stage whose weights are not current."""
    folders = {stage: layout.training(stage) for stage in ("pretrain", *layout.finetuned())}
    reasons = {stage: stale(layout, stage) for stage, folder in folders.items() if has_weights(folder)}
    return [f"{folders[stage]} is not current: {why}" for stage, why in reasons.items() if why]
