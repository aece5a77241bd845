"""Descriptions of the weights that a command reads, and checks that they are current."""

from pathlib import Path

from artefacts import command_hints, lock, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.training_folder import CHECKPOINTS, STOPPED_EARLY, finished, has_weights, read_identity
from configs.run_layout import RunLayout

#: Name of the run input that holds the initial weights of a classifier's backbone.
BACKBONE = "backbone"
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
    return f"weights: {_STAGES.get(run.get('stage', ''), 'given')}, {state}: {checkpoint}{note}"


def _why_earlier(checkpoint: Path, saved: Manifest) -> str:
    """Explain, after a comma, why a checkpoint is from an earlier step than the last step of its run."""
    folder = checkpoint.parents[1]
    try:
        ended = finished(folder) if checkpoint.parent.name == CHECKPOINTS else None
    except RequestError:
        ended = None
    if ended is None or ended.key != saved.key:
        return ", training is not finished"
    if STOPPED_EARLY in saved.counts:
        return ", where training ended early"
    return ", the lowest validation loss" if ended.details["checkpoint"] == checkpoint.name else ""


def is_only_pretrained(saved: Manifest) -> bool:
    """Return whether a checkpoint's weights were pretrained by Millrace, and neither fine-tuned nor imported."""
    run = saved.details.get("run", {})
    return run.get("stage") == "pretrain" and not run.get("imported")


def stale(layout: RunLayout, stage: str) -> str:
    """Say which artefacts have been replaced since a stage's weights were trained on them. Empty if none has.

    An artefact that was removed, or whose manifest cannot be read, does not count as replaced.
    """
    reasons = []
    for name, trained in read_identity(getattr(layout, stage)).get("inputs", {}).items():
        if name == BACKBONE:
            continue
        source = layout.pretrain if name == "weights" else getattr(layout, name)
        try:
            current = finished(source) if name == "weights" else manifest.read(source)
        except RequestError:
            continue
        now = current and (current.details["weights"] if name == "weights" else current.fingerprint)
        if now is not None and now != trained:
            reasons.append(f"{source} was replaced since")
    return ", ".join(reasons)


def check_tokenizer(checkpoint: Path, saved: Manifest, layout: RunLayout) -> None:
    """Raise ``RequestError`` if a checkpoint was not trained with the run's current tokenizer."""
    trained = saved.inputs.get("tokenizer")
    if trained is not None and trained != manifest.require(layout.tokenizer, "tokenizer").fingerprint:
        raise RequestError(
            f"{checkpoint} was trained with another tokenizer than {layout.tokenizer}, so its ids mean other text: "
            "use the recipe and ARGS that it was trained with, or train again"
        )


def check_finetuning(layout: RunLayout) -> None:
    """Check that the fine-tuned weights, which are used by default, are current.

    Raises:
        RequestError: the weights are not current; the message says what to do.
    """
    if why := stale(layout, "finetune"):
        raise RequestError(
            f"{layout.finetune} is not current ({why}): fine-tune again "
            f"(`{command_hints.make('finetune', None, 'run.replace=finetune')}`), or choose the weights with "
            "generate.stage=finetune or generate.stage=pretrain"
        )


def none_yet(layout: RunLayout, stage: str) -> RequestError:
    """Return the error for a stage without weights. The message says what exists, and which command to run."""
    folder = getattr(layout, stage)
    if lock.is_held(folder):
        return RequestError(
            f"{folder} has no checkpoint yet: the running training saves one every train.save_every steps"
        )
    begun = "has saved no checkpoint yet" if read_identity(folder) else "is not trained"
    return RequestError(f"{folder} {begun}: run `{command_hints.make(stage)}` first")


def unfinished(layout: RunLayout) -> list[str]:
    """Return a line for each stage that has started but not finished."""
    lines = []
    for stage in _STAGES:
        folder = getattr(layout, stage)
        if read_identity(folder) and finished(folder) is None:
            saved = "its newest checkpoint is used" if has_weights(folder) else "it has no checkpoint yet"
            lines.append(f"{folder}: training is not finished; {saved}")
    return lines


def outdated(layout: RunLayout) -> list[str]:
    """Return a line for each stage whose weights are not current."""
    reasons = {stage: stale(layout, stage) for stage in _STAGES if has_weights(getattr(layout, stage))}
    return [f"{getattr(layout, stage)} is not current: {why}" for stage, why in reasons.items() if why]
