"""What pretraining and fine-tuning of a recipe are: their identities, and the artefacts that they learn from."""

from pathlib import Path
from typing import Any

from artefacts import command_hints, manifest
from artefacts.differences import first_difference
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.training_folder import TrainingRun, finished
from configs.checks.run_weights import BACKBONE
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.models.classifier import ClassifierSection
from pipeline.examples.identity import examples_identity


def pretrain_run(recipe: Recipe, layout: RunLayout) -> TrainingRun:
    """The pretraining run of a recipe over the published token shards, or examples.

    Raises:
        RequestError: what it learns from is not there, or comes from other inputs or another vocabulary; or the recipe
            is one for data alone.
    """
    model, train = recipe.model.identity(), recipe.train.identity()
    folder = layout.tokens if recipe.task == "language_modeling" else layout.examples
    data = manifest.require(folder, "data")
    tokenizer = manifest.require(layout.tokenizer, "tokenizer")
    if data.inputs.get("tokenizer") != tokenizer.fingerprint:
        raise RequestError(
            f"{folder} was made by another tokenizer than {layout.tokenizer}: run `{command_hints.make('data')}`"
        )
    if recipe.task != "language_modeling":
        _require_same_examples(recipe, folder, data)
    if data.details["vocab_size"] > recipe.vocab_size:
        raise RequestError(
            f"{folder} holds token ids up to {data.details['vocab_size'] - 1}, beyond the model's vocabulary "
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
        inputs[BACKBONE] = _of_backbone(recipe, checkpoint, tokenizer)
    if recipe.train.packing == "best_fit":
        inputs["packing"] = _packing(recipe, layout, data)
    return TrainingRun("pretrain", layout.pretrain, identity, inputs)


def backbone_checkpoint(recipe: Recipe) -> Path | None:
    """The checkpoint of ``model.weights``, which may be that or a run's folder; None: the recipe names none.

    Raises:
        RequestError: there is none there.
    """
    if not isinstance(recipe.model, ClassifierSection) or recipe.model.weights is None:
        return None
    return given_checkpoint(recipe.model.weights, "model.weights")


def given_checkpoint(path: str, key: str) -> Path:
    """The checkpoint that a recipe's ``key`` names: itself, or a run's folder.

    Raises:
        RequestError: there is none there.
    """
    given = Path(path).expanduser().resolve()
    if (saved := manifest.read(given)) is not None and saved.stage == "checkpoint":
        return given
    for folder in (given, given / "pretrain"):
        if (found := finished_checkpoint(folder)) is not None and found[0].is_dir():
            return found[0]
    released = "; a model directory in Hugging Face's layout begins a run by `make import`"
    raise RequestError(
        f"{key}={given}: neither a run whose pretraining is finished nor a checkpoint"
        f"{released if (given / 'config.json').is_file() else ''}"
    )


def _of_backbone(recipe: Recipe, checkpoint: Path, tokenizer: Manifest) -> str:
    """Fingerprint of a backbone's checkpoint.

    Raises:
        RequestError: it was trained with another tokenizer than this run has, or as another model.
    """
    made = manifest.require(checkpoint, "pretrain")
    assert isinstance(recipe.model, ClassifierSection)
    asked = {**recipe.model.backbone.identity(), "vocab_size": recipe.vocab_size}
    trained = made.details["model"].get("backbone", made.details["model"])
    free = ("max_position_embeddings", "dropout", "num_nextn_predict_layers", "tie_word_embeddings")
    for key, value in trained.items():
        if key in asked and key not in free and asked[key] != value:
            name = "model.vocab_size" if key == "vocab_size" else f"model.backbone.{key}"
            raise RequestError(f"{checkpoint} was trained with {key}={value}: set {name}={value}, not {asked[key]}")
    run = checkpoint.parents[min(2, len(checkpoint.parents) - 1)]
    theirs = manifest.read(run / "tokenizer")
    if theirs is not None and theirs.fingerprint != tokenizer.fingerprint:
        raise RequestError(
            f"{checkpoint} was trained with another tokenizer than this run's: set tokenizer.kind=run "
            f"tokenizer.path={run}"
        )
    return made.fingerprint


def _require_same_examples(recipe: Recipe, folder: Path, made: Manifest) -> None:
    """Refuse examples that were made for another recipe, chat examples among them."""
    if why := first_difference(made.identity, examples_identity(recipe)):
        raise RequestError(f"{folder} was made for another recipe ({why}): run `{command_hints.make('data')}`")


def mixture_weights(recipe: Recipe, layout: RunLayout, tokens: Manifest) -> dict[str, float]:
    """The weight of each source whose shards stand in a folder of their own.

    Raises:
        RequestError: the recipe names other sources than the shards were made from.
    """
    made, asked = sorted(tokens.counts["sources"]), sorted(recipe.data.sources)
    if made != asked:
        raise RequestError(
            f"{layout.tokens} holds the sources {', '.join(made)}, the recipe names {', '.join(asked) or 'none'}: "
            f"run `{command_hints.make('data')}`"
        )
    return {name: recipe.data.sources[name].weight for name in made}


def _packing(recipe: Recipe, layout: RunLayout, tokens: Manifest) -> str:
    """Fingerprint of the packing of these shards at the recipe's context length."""
    found = manifest.require(layout.packing, "data")
    same = found.inputs.get("tokens") == tokens.fingerprint
    if not same or found.identity["context_length"] != recipe.train.context_length:
        raise RequestError(
            f"{layout.packing} was made from other shards or for another context length: "
            f"run `{command_hints.make('data')}`"
        )
    return found.fingerprint


def finetune_run(recipe: Recipe, layout: RunLayout) -> TrainingRun:
    """The fine-tuning run of a recipe over the finished pretraining and the published examples.

    Raises:
        RequestError: one of them is not there, or the recipe has no fine-tuning.
    """
    if recipe.finetune is None:
        raise RequestError("the recipe has no finetune section")
    pretrain = pretrain_run(recipe, layout)
    pretrained = pretrain.manifest()
    if pretrained is None:
        pretrain.check_replacing(replace=False)
        raise RequestError(f"{layout.pretrain} is not finished: run `{command_hints.make('pretrain')}` first")
    examples = manifest.require(layout.examples, "examples")
    # The examples are an input: where they came from does not matter.
    section = {key: value for key, value in recipe.finetune.identity().items() if key != "examples"}
    identity = {"seed": recipe.run.seed, "finetune": section, "pretrain": pretrain.key}
    return TrainingRun(
        "finetune",
        layout.finetune,
        identity,
        {
            "examples": examples.fingerprint,
            "tokenizer": examples.inputs["tokenizer"],
            "weights": pretrained.details["weights"],
        },
    )


def finished_checkpoint(folder: Path) -> tuple[Path, str] | None:
    """The last checkpoint of a finished training folder and its fingerprint, or None."""
    made = finished(folder)
    return (folder / "checkpoints" / made.details["checkpoint"], made.details["weights"]) if made else None
