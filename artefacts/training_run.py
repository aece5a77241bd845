"""The life of a training folder (``pretrain/``, ``finetune/``): the same identity resumes, another is moved aside.

Unlike a data artefact it is written in place, since its checkpoints are what a killed run comes back from. Its
``identity.json`` says what it is from the first step on, its ``manifest.json`` that it is finished.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artefacts import manifest, publish
from artefacts.layout import RunLayout
from artefacts.manifest import Manifest
from configs.errors import RequestError
from configs.schema import Recipe
from configs.schema.models.classifier import ClassifierSection

IDENTITY = "identity.json"
#: Among a run's inputs the weights that a classifier's backbone begins with.
BACKBONE = "backbone"


@dataclass(frozen=True)
class TrainingRun:
    """What a training folder is asked to hold.

    Attributes:
        stage: ``pretrain`` or ``finetune``.
        folder: where its checkpoints and metrics lie.
        identity: recipe keys that make it another run when they change.
        inputs: fingerprints of the artefacts it learns from.
    """

    stage: str
    folder: Path
    identity: dict[str, Any]
    inputs: dict[str, str]

    @property
    def key(self) -> str:
        return manifest.stage_key(self.identity, self.inputs)

    @property
    def stacks(self) -> Path:
        """Where ranks write down where they stand when a run stands still."""
        return self.folder / "stacks"

    def manifest(self) -> Manifest | None:
        """The manifest of the finished run with this identity, else None; without its weights it is not finished."""
        found = manifest.read(self.folder)
        if found is None or found.key != self.key:
            return None
        return found if (self.folder / "checkpoints" / found.details["checkpoint"]).exists() else None

    def begun(self) -> bool:
        """Whether the folder holds this run, finished or not."""
        return _read_identity(self.folder).get("key") == self.key

    def open(self, recipe_text: str) -> None:
        """Make the folder ready to begin or resume; one of another identity is moved aside and the move printed."""
        if self.folder.exists() and not self.begun():
            there = _read_identity(self.folder)
            before = {**there.get("identity", {}), "inputs": there.get("inputs", {})}
            why = first_difference(before, {**self.identity, "inputs": self.inputs}) if there else "unreadable"
            print(f"{self.folder}: another run ({why}), moved aside to {publish.move_aside(self.folder)}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        publish.write_text(self.folder / "recipe.yaml", recipe_text)
        publish.write_json(self.folder / IDENTITY, {"key": self.key, "identity": self.identity, "inputs": self.inputs})

    def finish(self, counts: dict[str, Any], versions: dict[str, str], details: dict[str, Any]) -> None:
        """Write the manifest: the run is whole. It lists no files: checkpoints have manifests, logs go on growing."""
        manifest.write(self.folder, Manifest(self.stage, self.identity, self.inputs, versions, counts, {}, details))


def pretrain_run(recipe: Recipe, layout: RunLayout) -> TrainingRun:
    """The pretraining run of a recipe over the published token shards, or examples.

    Raises:
        RequestError: what it learns from is not there, or comes from other inputs or another vocabulary; or the recipe
            is one for data alone.
    """
    model, train = recipe.model.identity(), recipe.train.identity()
    folder = layout.tokens if recipe.learns == "text" else layout.examples
    data = manifest.require(folder, "make data")
    tokenizer = manifest.require(layout.tokenizer, "make tokenizer")
    if data.inputs.get("tokenizer") != tokenizer.fingerprint:
        raise RequestError(f"{folder} was made by another tokenizer than {layout.tokenizer}: run `make data`")
    if recipe.learns != "text":
        _require_same_examples(recipe, folder, data)
    if data.details["vocab_size"] > recipe.vocab_size:
        raise RequestError(
            f"{folder} holds token ids up to {data.details['vocab_size'] - 1}, beyond the model's vocabulary "
            f"of {recipe.vocab_size}: set model.vocab_size or run `make data`"
        )
    identity: dict[str, Any] = {
        "seed": recipe.run.seed,
        "model": {**model, "vocab_size": recipe.vocab_size},
        "train": train,
    }
    inputs = {folder.name: data.fingerprint}
    if recipe.learns == "text" and "sources" in data.counts:
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
    made = manifest.require(checkpoint, "make pretrain")
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


def examples_identity(recipe: Recipe) -> dict[str, Any]:
    """The recipe keys that the examples depend on of a model that learns from no running text."""
    found = {
        "learns": recipe.learns,
        "context_length": recipe.train.context_length,
        "validation_fraction": recipe.data.tokens.validation_fraction,
        "seed": recipe.run.seed,
    }
    return found | ({"classes": recipe.model.identity()["classes"]} if recipe.learns == "labels" else {})


def _require_same_examples(recipe: Recipe, folder: Path, made: Manifest) -> None:
    """Refuse examples that were made for another recipe, chat examples among them."""
    if why := first_difference(made.identity, examples_identity(recipe)):
        raise RequestError(f"{folder} was made for another recipe ({why}): run `make data`")


def mixture_weights(recipe: Recipe, layout: RunLayout, tokens: Manifest) -> dict[str, float]:
    """The weight of each source whose shards stand in a folder of their own.

    Raises:
        RequestError: the recipe names other sources than the shards were made from.
    """
    made, asked = sorted(tokens.counts["sources"]), sorted(recipe.data.sources)
    if made != asked:
        raise RequestError(
            f"{layout.tokens} holds the sources {', '.join(made)}, the recipe names {', '.join(asked) or 'none'}: "
            "run `make data`"
        )
    return {name: recipe.data.sources[name].weight for name in made}


def _packing(recipe: Recipe, layout: RunLayout, tokens: Manifest) -> str:
    """Fingerprint of the packing of these shards at the recipe's context length."""
    found = manifest.require(layout.packing, "make data")
    same = found.inputs.get("tokens") == tokens.fingerprint
    if not same or found.identity["context_length"] != recipe.train.context_length:
        raise RequestError(f"{layout.packing} was made of other shards or for another context length: run `make data`")
    return found.fingerprint


def finetune_run(recipe: Recipe, layout: RunLayout) -> TrainingRun:
    """The fine-tuning run of a recipe over the finished pretraining and the published examples.

    Raises:
        RequestError: one of them is not there, or the recipe has no fine-tuning.
    """
    if recipe.finetune is None:
        raise RequestError("the recipe has no finetune section")
    pretrain = pretrain_run(recipe, layout)
    finished = pretrain.manifest()
    if finished is None:
        raise RequestError(f"{layout.pretrain} is not finished for this recipe: run `make pretrain` first")
    examples = manifest.require(layout.examples, "python -m pipeline examples")
    identity = {"seed": recipe.run.seed, "finetune": recipe.finetune.identity(), "pretrain": pretrain.key}
    return TrainingRun(
        "finetune",
        layout.finetune,
        identity,
        {"examples": examples.fingerprint, "weights": finished.details["weights"]},
    )


def finished_checkpoint(folder: Path) -> tuple[Path, str] | None:
    """The last checkpoint of a finished training folder and its fingerprint, or None."""
    found = manifest.read(folder)
    if found is None or found.stage not in ("pretrain", "finetune"):
        return None
    return folder / "checkpoints" / found.details["checkpoint"], found.details["weights"]


def require_same_tokens(layout: RunLayout) -> None:
    """Weights mean something only with the tokenizer and the data that they were trained on.

    Raises:
        RequestError: the data were made anew since pretraining.
    """
    inputs = _read_identity(layout.pretrain).get("inputs", {})
    for folder in (layout.tokens, layout.examples):
        trained = inputs.get(folder.name)
        if trained is not None and trained != manifest.require(folder, "make data").fingerprint:
            raise RequestError(f"{layout.pretrain} was trained on other data than {folder}: run `make pretrain`")


def finetune_is_current(layout: RunLayout) -> bool:
    """Whether the fine-tuning on disk began from the pretraining and the examples on disk, not from replaced ones."""
    finished, examples = finished_checkpoint(layout.pretrain), manifest.read(layout.examples)
    if finished is None or examples is None:
        return False
    return _read_identity(layout.finetune).get("inputs") == {"examples": examples.fingerprint, "weights": finished[1]}


def first_difference(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> str:
    """The first key, dotted, at which two nested mappings differ, as ``model.hidden_size 192 -> 256``; empty: none."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if found := first_difference(old, new, f"{prefix}{key}."):
                return found
        elif old != new:
            return f"{prefix}{key} {old} -> {new}"
    return ""


def _read_identity(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
