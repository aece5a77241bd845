"""Publish a ready tokenizer, in Hugging Face's format or of another run, as the ``tokenizer`` artefact of a run."""

from pathlib import Path

from artefacts import atomic, fingerprint, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.stage import open_stage
from configs.data_guard import guard
from configs.identities import tokenizer_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer import repository
from tokenizer.base import Tokenizer
from tokenizer.measure import MEASURED_BYTES, measured
from tokenizer.training_sample import sample


def check(recipe: Recipe) -> None:
    """Refuse what ``take`` would refuse after the documents are built; an artefact that was made of it is enough.

    Raises:
        RequestError: no such tokenizer, or one with more ids than the model has rows.
    """
    path = str(recipe.tokenizer.path)
    made = manifest.read(RunLayout.of(recipe).tokenizer)
    if made is None or not _inputs(recipe, path).items() <= made.inputs.items():
        _read(recipe, path)


def take(recipe: Recipe) -> Manifest | None:
    """Copy the tokenizer of ``tokenizer.path`` and publish it; None where it is up to date.

    A local one is known by its content, wherever it lies; one of the hub by its name, so that a finished artefact needs
    no network.

    Raises:
        RequestError: no cleaned documents, no such tokenizer, or one with more ids than the model has rows.
    """
    layout = RunLayout.of(recipe)
    path = str(recipe.tokenizer.path)
    documents = manifest.require(layout.documents, "data")
    inputs = {"documents": documents.fingerprint}
    with open_stage(
        "tokenizer",
        layout.tokenizer,
        tokenizer_identity(recipe),
        inputs | _inputs(recipe, path),
        check_replacing=guard(recipe, "tokenizer"),
    ) as stage:
        if stage.finished:
            return None
        repair_hints.check_sizes("documents", layout.documents)
        tokenizer, contents = _read(recipe, path)
        for name, content in contents.items():
            atomic.write_bytes(stage.work / name, content)
        budget = min(recipe.tokenizer.sample_bytes, MEASURED_BYTES)
        reserved = [tokenizer.piece(token) for token in range(tokenizer.vocab_size) if tokenizer.is_reserved(token)]
        return stage.publish(
            counts=measured(tokenizer, sample(layout.documents, budget, recipe.run.seed)),
            versions=manifest.versions("tokenizers"),
            details={"vocab_size": tokenizer.vocab_size, "reserved": reserved},
        )


def _inputs(recipe: Recipe, path: str) -> dict[str, str]:
    """What the artefact is made of beside the documents."""
    if recipe.tokenizer.kind == "run":
        return {"tokenizer of a run": manifest.require(_of_run(path), "tokenizer").fingerprint}
    if repository.is_local(path):
        return {f"tokenizer {file.name}": fingerprint.of_file(file) for file in repository.files(path)}
    return {"tokenizer": f"hub:{path}"}


def _of_run(path: str) -> Path:
    """The tokenizer artefact of a run's folder, or of its data's, or itself."""
    given = Path(path).expanduser()
    return given / "tokenizer" if (given / "tokenizer").is_dir() else given


def _read(recipe: Recipe, path: str) -> tuple[Tokenizer, dict[str, bytes]]:
    """The tokenizer and its files' content, by name."""
    tokenizer: Tokenizer
    if recipe.tokenizer.kind == "run":
        folder = _of_run(path)
        made = manifest.require_sound(folder, "tokenizer")
        tokenizer, contents = Tokenizer.load(folder), {name: (folder / name).read_bytes() for name in made.files}
    else:
        tokenizer, contents = repository.read(repository.files(path), path)
    if recipe.has_model and tokenizer.vocab_size > recipe.vocab_size:
        raise RequestError(
            f"tokenizer.path={path} has {tokenizer.vocab_size} ids, the model's vocabulary {recipe.vocab_size}: "
            f"set model.vocab_size={tokenizer.vocab_size} or more"
        )
    return tokenizer, contents
