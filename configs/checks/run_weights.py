"""Which weights a command reads, in one line: the stage, the step, whether it is the last and whether it is current."""

from pathlib import Path

from artefacts import command_hints, lock, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.training_folder import finished, has_weights, read_identity
from configs.run_layout import RunLayout

#: Among a run's inputs the weights that a classifier's backbone begins with.
BACKBONE = "backbone"
_STAGES = {"pretrain": "pretrained", "finetune": "fine-tuned"}


def line(checkpoint: Path, saved: Manifest, stale: str = "") -> str:
    """What is read: ``saved`` is the checkpoint's manifest, ``stale`` as the function of that name says."""
    run, step = saved.details.get("run", {}), saved.counts["step"]
    state = f"step {step}"
    if run.get("imported"):
        state = "imported"
    elif run:
        state += f" of {run['steps']}{'' if step == run['steps'] else ', training is not finished'}"
    note = f" (not current: {stale})" if stale else ""
    return f"weights: {_STAGES.get(run.get('stage', ''), 'given')}, {state}: {checkpoint}{note}"


def is_only_pretrained(saved: Manifest) -> bool:
    """Whether a checkpoint's weights were trained here on running text alone, as its manifest says."""
    run = saved.details.get("run", {})
    return run.get("stage") == "pretrain" and not run.get("imported")


def stale(layout: RunLayout, stage: str) -> str:
    """Why a training now would learn from something else than the stage's weights did; empty: it would not.

    Data that were removed since, or whose manifest cannot be read, say nothing.
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
    """Raise ``RequestError`` where a checkpoint's ids are of another tokenizer than the run's."""
    trained = saved.inputs.get("tokenizer")
    if trained is not None and trained != manifest.require(layout.tokenizer, "tokenizer").fingerprint:
        raise RequestError(
            f"{checkpoint} was trained with another tokenizer than {layout.tokenizer}: its ids mean other text. "
            "Use the recipe and ARGS that it was trained with, or train again"
        )


def check_finetuning(layout: RunLayout) -> None:
    """Refuse fine-tuned weights that were not trained from what is there, for a command that was not told which to use.

    Raises:
        RequestError: they were not; with the ways on.
    """
    if why := stale(layout, "finetune"):
        raise RequestError(
            f"{layout.finetune} is not current ({why}): fine-tune again "
            f"(`{command_hints.make('finetune', None, 'run.replace=finetune')}`), or say which weights you want: "
            "generate.stage=finetune or generate.stage=pretrain"
        )


def none_yet(layout: RunLayout, stage: str) -> RequestError:
    """There are no weights of a stage: what there is instead, and what makes them."""
    folder = getattr(layout, stage)
    if lock.is_held(folder):
        return RequestError(
            f"{folder} has no checkpoint yet: the training that runs there saves every train.save_every"
        )
    begun = "has saved no checkpoint yet" if read_identity(folder) else "is not trained"
    return RequestError(f"{folder} {begun}: run `{command_hints.make(stage)}` first")


def unfinished(layout: RunLayout) -> list[str]:
    """A line for each stage that has begun and is not finished."""
    lines = []
    for stage in _STAGES:
        folder = getattr(layout, stage)
        if read_identity(folder) and finished(folder) is None:
            saved = "its newest checkpoint is used" if has_weights(folder) else "it has no checkpoint yet"
            lines.append(f"{folder}: training is not finished; {saved}")
    return lines


def outdated(layout: RunLayout) -> list[str]:
    """A line for each stage whose weights were not trained from what is there now."""
    reasons = {stage: stale(layout, stage) for stage in _STAGES if has_weights(getattr(layout, stage))}
    return [f"{getattr(layout, stage)} is not current: {why}" for stage, why in reasons.items() if why]
