"""Determines the identities and the input artefacts of a recipe's pretraining and fine-tuning runs."""

from pathlib import Path
from typing import Any

from artefacts import command_hints, fingerprint, manifest
from artefacts.differences import first_difference
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.training_folder import CHECKPOINTS, TrainingRun, finished, has_weights, read_identity
from configs.checks.run_weights import ADAPTER, BACKBONE
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from configs.schema.models.classifier import ClassifierSection
from pipeline.examples.identity import examples_identity

#: File of an adapter's weights in peft's format.
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def pretrain_run(recipe: Recipe, layout: RunLayout) -> TrainingRun:
    """Return a recipe's pretraining run on the published token shards or examples.

    Raises:
        RequestError: the inputs are missing, or were made with another tokenizer, recipe or vocabulary; or the recipe
            is for data only.
    """
    model, train = recipe.model.identity(), recipe.train.identity()
    folder = layout.tokens if recipe.task == "language_modeling" else layout.examples
    data = manifest.require(folder, "data")
    tokenizer = manifest.require(layout.tokenizer, "tokenizer")
    if data.inputs.get("tokenizer") != tokenizer.fingerprint:
        raise RequestError(
            f"{folder} was made with a different tokenizer than {layout.tokenizer}: run `{command_hints.make('data')}`"
        )
    if recipe.task != "language_modeling":
        _require_same_examples(recipe, folder, data)
    if data.details["vocab_size"] > recipe.vocab_size:
        raise RequestError(
            f"{folder} has token ids up to {data.details['vocab_size'] - 1}, beyond the model's vocabulary "
            f"of {recipe.vocab_size}: set model.vocab_size or run `{command_hints.make('data')}`"
        )
    identity: dict[str, Any] = {
        "seed": recipe.run.seed,
        "model": {**model, "vocab_size": recipe.vocab_size},
        "train": train,
    }
    inputs = {folder.name: data.fingerprint, "tokenizer": tokenizer.fingerprint}
    if recipe.task == "language_modeling" and "sources" in data.counts:
        identity["mixture"] = mixture_weights(recipe, layout, data)
    if (checkpoint := backbone_checkpoint(recipe)) is not None:
        inputs[BACKBONE] = _backbone_fingerprint(recipe, checkpoint, tokenizer)
    if recipe.train.packing == "best_fit":
        inputs["packing"] = _packing_fingerprint(recipe, layout, data)
    return TrainingRun("pretrain", layout.pretrain, identity, inputs)


def backbone_checkpoint(recipe: Recipe) -> Path | None:
    """Return the checkpoint specified by ``model.weights``, or None if the key is not set.

    Raises:
        RequestError: there is no checkpoint at that path.
    """
    if not isinstance(recipe.model, ClassifierSection) or recipe.model.weights is None:
        return None
    return named_checkpoint(recipe.model.weights, "model.weights")


def named_checkpoint(path: str, key: str) -> Path:
    """Return the checkpoint at ``path``, a checkpoint's or a run's folder. ``key`` is the recipe key with that value.

    Raises:
        RequestError: there is no checkpoint at that path.
    """
    location = Path(path).expanduser().resolve()
    if (saved := manifest.read(location)) is not None and saved.stage == "checkpoint":
        return location
    for folder in (location, location / "pretrain"):
        if (last := finished_checkpoint(folder)) is not None and last[0].is_dir():
            return last[0]
    hint = "; to use a Hugging Face model directory, import it with `make import`"
    raise RequestError(
        f"{key}={location}: neither a run with finished pretraining nor a checkpoint"
        f"{hint if (location / 'config.json').is_file() else ''}"
    )


def _backbone_fingerprint(recipe: Recipe, checkpoint: Path, tokenizer: Manifest) -> str:
    """Return the fingerprint of a backbone's checkpoint.

    Raises:
        RequestError: the backbone was trained with a different tokenizer, or is a different model.
    """
    saved = manifest.require(checkpoint, "pretrain")
    assert isinstance(recipe.model, ClassifierSection)
    wanted = {**recipe.model.backbone.identity(), "vocab_size": recipe.vocab_size}
    trained = saved.details["model"].get("backbone", saved.details["model"])
    may_differ = ("max_position_embeddings", "dropout", "num_nextn_predict_layers", "tie_word_embeddings")
    for key, value in trained.items():
        if key in wanted and key not in may_differ and wanted[key] != value:
            name = "model.vocab_size" if key == "vocab_size" else f"model.backbone.{key}"
            raise RequestError(f"{checkpoint} was trained with {key}={value}: set {name}={value}, not {wanted[key]}")
    run = checkpoint.parents[min(2, len(checkpoint.parents) - 1)]
    theirs = manifest.read(run / "tokenizer")
    if theirs is not None and theirs.fingerprint != tokenizer.fingerprint:
        raise RequestError(
            f"{checkpoint} was trained with a different tokenizer than this run's: set tokenizer.kind=run "
            f"tokenizer.path={run}"
        )
    return saved.fingerprint


def _require_same_examples(recipe: Recipe, folder: Path, examples: Manifest) -> None:
    """Raise ``RequestError`` if the examples are chat examples or were made for a different recipe."""
    if why := first_difference(examples.identity, examples_identity(recipe)):
        raise RequestError(f"{folder} was made for another recipe ({why}): run `{command_hints.make('data')}`")


def mixture_weights(recipe: Recipe, layout: RunLayout, tokens: Manifest) -> dict[str, float]:
    """Return every source's weight, for token shards with one folder per source.

    Raises:
        RequestError: the recipe's sources differ from the shards'.
    """
    available, wanted = sorted(tokens.counts["sources"]), sorted(recipe.data.sources)
    if available != wanted:
        raise RequestError(
            f"{layout.tokens} has the sources {', '.join(available)}, the recipe {', '.join(wanted) or 'none'}: "
            f"run `{command_hints.make('data')}`"
        )
    return {name: recipe.data.sources[name].weight for name in available}


def _packing_fingerprint(recipe: Recipe, layout: RunLayout, tokens: Manifest) -> str:
    """Return the packing's fingerprint. The packing must match these shards and the recipe's context length."""
    packing = manifest.require(layout.packing, "data")
    same = packing.inputs.get("tokens") == tokens.fingerprint
    if not same or packing.identity["context_length"] != recipe.train.context_length:
        raise RequestError(
            f"{layout.packing} was made from different shards or for a different context length: "
            f"run `{command_hints.make('data')}`"
        )
    return packing.fingerprint


def training_run(recipe: Recipe, layout: RunLayout, name: str) -> TrainingRun:
    """Return a stage's training run. ``name`` is ``pretrain`` or the name of a fine-tuning stage.

    Raises:
        RequestError: an input is missing or was made for another recipe, or there is no such stage.
    """
    return pretrain_run(recipe, layout) if name == "pretrain" else finetune_run(recipe, layout, name)


def finetune_run(recipe: Recipe, layout: RunLayout, name: str) -> TrainingRun:
    """Return a fine-tuning stage's run, which needs published examples and the finished stage that it starts from.

    Raises:
        RequestError: either is missing, or the recipe has no such stage.
    """
    stage = recipe.stage(name)
    start = training_run(recipe, layout, recipe.start_of(stage))
    started = start.manifest()
    if started is None:
        start.check_replacing(replace=False)
        raise RequestError(f"{start.folder} is not finished: run `{command_hints.make(start.stage)}` first")
    examples = manifest.require(layout.examples_of(name), "examples")
    # The examples' fingerprint is among the inputs, so how they were made need not be part of the identity. Neither is
    # the stage's own name, but stages that start from it record that name.
    section = {key: value for key, value in stage.identity().items() if key not in ("examples", "name", "start_from")}
    identity = {"seed": recipe.run.seed, "finetune": section, "start_from": start.name, "start": start.key}
    inputs = {
        "examples": examples.fingerprint,
        "tokenizer": examples.inputs["tokenizer"],
        "weights": started.details["weights"],
    }
    if stage.lora and stage.lora.adapter:
        key = recipe.stage_key(stage, "lora.adapter")
        inputs[ADAPTER] = _adapter_fingerprint(Path(stage.lora.adapter), key, layout.finetune(name))
    return TrainingRun("finetune", layout.finetune(name), identity, inputs, name)


def check_adapter(recipe: Recipe, layout: RunLayout, stage: FinetuneSection) -> None:
    """Raise ``RequestError`` if the adapter that a stage started from was removed or replaced since."""
    if stage.lora is None or stage.lora.adapter is None:
        return
    weights, folder = Path(stage.lora.adapter) / _ADAPTER_WEIGHTS, layout.finetune(stage.name)
    recorded = read_identity(folder).get("inputs", {}).get(ADAPTER)
    if not weights.is_file() or fingerprint.of_file(weights) != recorded:
        key, again = (
            recipe.stage_key(stage, "lora.adapter"),
            command_hints.make("finetune", None, "run.replace=finetune"),
        )
        raise RequestError(
            f"{key}={stage.lora.adapter}: {folder} started from another adapter: restore that one, or train the stage "
            f"again: `{again}`"
        )


def _adapter_fingerprint(adapter: Path, key: str, folder: Path) -> str:
    """Return the fingerprint of an adapter's weights, or the recorded one if the stage's checkpoints contain them.

    Args:
        adapter: the adapter's folder.
        key: the recipe key that names it.
        folder: the stage's training folder.

    Raises:
        RequestError: the adapter is missing and the stage has no checkpoint that started from one.
    """
    weights = adapter / _ADAPTER_WEIGHTS
    if weights.is_file():
        return fingerprint.of_file(weights)
    recorded = read_identity(folder).get("inputs", {}).get(ADAPTER) if has_weights(folder) else None
    if recorded is None:
        raise RequestError(f"{key}={adapter}: there is no {weights.name}: name a folder that peft saved an adapter in")
    return str(recorded)


def stages_of(recipe: Recipe, verb: str) -> list[str]:
    """List the names of the stages that a command trains, in order.

    Raises:
        RequestError: the recipe has no section for the command.
    """
    if verb == "pretrain":
        return ["pretrain"]
    if not recipe.finetune:
        raise RequestError("the recipe has no finetune section")
    return [stage.name for stage in recipe.finetune]


def next_run(recipe: Recipe, layout: RunLayout, verb: str) -> TrainingRun:
    """Return the first of a command's stages that is not finished, or the last stage if all are finished.

    Raises:
        RequestError: an input is missing or was made for another recipe, or there is no such section.
    """
    for name in stages_of(recipe, verb):
        run = training_run(recipe, layout, name)
        if run.manifest() is None:
            break
    return run


def finished_checkpoint(folder: Path) -> tuple[Path, str] | None:
    """Return a training folder's last checkpoint and its fingerprint, or None if training is not finished."""
    saved = finished(folder)
    return (folder / CHECKPOINTS / saved.details["checkpoint"], saved.details["weights"]) if saved else None
