"""``python -m training import``: uses a Hugging Face model directory as a run's finished pretraining.

Everything that builds on pretraining (generation, evaluation, fine-tuning, export) then uses these weights.
"""

import json
from itertools import chain
from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, fingerprint, lock
from artefacts.errors import RequestError
from artefacts.training_folder import CHECKPOINTS, has_weights
from configs.command import DONE
from configs.load import as_override, dump_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.base import JSON_NAME, MODEL_NAME, Tokenizer
from tokenizer.registry import load_tokenizer
from tokenizer.released import spelling
from tokenizer.special_tokens import RESERVED
from training.checkpoint.save import RunIdentity
from training.checkpoint.write_full import write_full
from training.estimate.parameters import parameters
from training.export import config_json
from training.export.directory import names_in, weight_files, weights_in
from training.export.formats import format_of
from training.export.prediction import PredictionLayers
from training.export.weights import load_weights
from training.models.registry import build_model, init_weights
from training.runs import pretrain_run

#: Keys in which a recipe may differ from config.json: they are compared separately, or do not affect the weights.
_MAY_DIFFER = ("vocab_size", "bias", "dropout", "initializer_range", "num_nextn_predict_layers")


def import_model(recipe: Recipe, folder: Path) -> int:
    """Create ``pretrain/`` from the weights in a model directory. Returns the exit status.

    Raises:
        RequestError: there is no such directory, its model differs from the recipe's, the run has no data yet, or the
            run already has other weights.
    """
    layout, folder = RunLayout.of(recipe), folder.expanduser()
    config = config_json.read(folder)
    _require_same(recipe, folder, config)
    run = pretrain_run(recipe, layout)
    _require_same_tokens(load_tokenizer(layout.tokenizer), folder)
    files = {path.name: fingerprint.of_file(path) for path in weight_files(folder)}
    if (finished := run.manifest()) is not None and finished.details.get("imported") == files:
        print(f"{run.folder}: up to date")
        return DONE
    again = run.begun() and has_weights(run.folder)
    if again and not recipe.run.may_replace("pretrain"):
        raise RequestError(
            f"{run.folder} already holds weights that are not a complete import of {folder}: choose another run.name, "
            "or move them aside (run.replace=true)"
        )
    run.check_replacing(recipe.run.may_replace("pretrain"))
    prediction = PredictionLayers.of(recipe.model, names_in(folder), folder)
    with lock.hold(run.folder):
        model = _model(recipe, folder, prediction)
        if again:
            print(f"{run.folder}: moved aside to {atomic.move_aside(run.folder)}", flush=True)
        run.open(dump_recipe(recipe), recipe.run.may_replace("pretrain"))
        counts = parameters(recipe.model, recipe.vocab_size)
        identity = RunIdentity(
            run.identity,
            run.inputs,
            model={**recipe.model.identity(), "vocab_size": recipe.vocab_size},
            topology={"ranks": 1, "expert_parallel": 1, "zero_stage": 0, "precision": "fp32"},
            run={
                "stage": "pretrain",
                "name": "pretrain",
                "steps": 0,
                "parameters": {"total": counts.total, "active": counts.active},
                "imported": files,
            },
        )
        checkpoint, _ = write_full(run.folder / CHECKPOINTS, model, identity)
        run.finish(checkpoint)
    print(f"import: {counts.total:,} parameters from {folder} are now in {checkpoint}; nothing was trained")
    for line in prediction.report(config, recipe.model):
        print(f"import: {line}")
    return DONE


def _model(recipe: Recipe, folder: Path, prediction: PredictionLayers) -> Any:
    """Build the recipe's model, and load the weights from a model directory into it."""
    model = build_model(recipe.model, recipe.vocab_size)
    weights = prediction.kept(weights_in(folder))
    if prediction.new:
        init_weights(model, recipe.run.seed)
        weights = chain(weights, prediction.new_weights(model))
    try:
        load_weights(model, weights)
    except RequestError as error:
        raise RequestError(f"{folder}: {error}") from None
    return model


def _require_same(recipe: Recipe, folder: Path, config: dict[str, Any]) -> None:
    """Raise ``RequestError`` if the model differs from the recipe's.

    The message names the first key that differs, and lists all keys to set.
    """
    released = format_of(recipe.model)
    try:
        theirs = released.model_section(config)
    except RequestError as error:
        raise RequestError(f"{folder}: {error}") from None
    wanted, imported = recipe.model.identity(), theirs.identity()
    differ = {
        key: value
        for key, value in imported.items()
        if key not in _MAY_DIFFER and wanted.get(key) != value and not _same_width(key, recipe, theirs)
    }
    if differ:
        key, value = next(iter(differ.items()))
        fix = " ".join(as_override(f"model.{key}", value) for key, value in differ.items())
        raise RequestError(f"{folder} has {key}={value}, the recipe model.{key}={wanted.get(key)}: set {fix}")
    if theirs.vocab_size != recipe.vocab_size:
        raise RequestError(
            f"{folder} has a vocabulary of {theirs.vocab_size}, the recipe one of {recipe.vocab_size}: "
            f"set model.vocab_size={theirs.vocab_size}"
        )


def _require_same_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Raise ``RequestError`` if the folder contains a tokenizer that differs from the run's."""
    pieces = {token: spelling(piece) for token, piece in _pieces(folder).items()}
    ours = (spelling(tokenizer.piece(token)) for token in range(tokenizer.vocab_size))
    for token, piece in enumerate(ours):
        if pieces.get(token, piece) == piece:
            continue
        fix = f"set tokenizer.kind=huggingface tokenizer.path={folder}, and run `{command_hints.make('data')}`"
        if (folder / MODEL_NAME).is_file() and all(pieces.get(i) == name for i, name in enumerate(RESERVED)):
            # The folder was exported by Millrace, so the original run has a tokenizer that includes the chat tokens.
            fix = "make the data with the tokenizer of the run that it was exported from (tokenizer.kind=run)"
        raise RequestError(f"token {token} is {pieces[token]!r} in {folder} and {piece!r} in the run's data: {fix}")


def _pieces(folder: Path) -> dict[int, str]:
    """Return a map from id to token for a model directory's tokenizer. It is empty if the directory has no tokenizer.

    Raises:
        RequestError: the tokenizer's file is damaged.
    """
    if (path := folder / JSON_NAME).is_file():
        from tokenizers import Tokenizer as Released

        try:
            vocabulary = Released.from_file(str(path)).get_vocab()
        except Exception as error:  # the library raises plain Exceptions
            raise RequestError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    elif (path := folder / "vocab.json").is_file():
        try:
            vocabulary = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise RequestError(f"{path}: cannot be read ({error})") from None
        if not isinstance(vocabulary, dict):
            raise RequestError(f"{path}: not a JSON object")
    elif (path := folder / MODEL_NAME).is_file():
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError):
            raise RequestError(f"{path}: not a SentencePiece model") from None
        return {token: processor.IdToPiece(token) for token in range(processor.GetPieceSize())}
    else:
        vocabulary = {}
    return {token: piece for piece, token in vocabulary.items()}


def _same_width(key: str, recipe: Recipe, theirs: Any) -> bool:
    """Return whether the widths are equal although only one side sets ``intermediate_size`` explicitly."""
    return key == "intermediate_size" and getattr(recipe.model, "width", None) == getattr(theirs, "width", 0)
