"""The identity of each data artefact: the recipe keys that it depends on."""

from typing import Any

from configs.schema import Recipe

#: Keys of a source that its documents do not depend on: for the first three the content counts.
NOT_IN_DOCUMENTS = ("path", "target_path", "revision", "weight")
#: Kinds of source whose documents follow from the seed.
_SYNTHETIC = ("patterns", "sequences")


def documents_identity(recipe: Recipe) -> dict[str, Any]:
    """The identity of the documents. The content of a source is an input, so its path is not part of the identity."""
    sections = recipe.data.named_sources
    sources = {
        name: {key: value for key, value in section.identity().items() if key not in NOT_IN_DOCUMENTS}
        for name, section in sections.items()
    }
    identity: dict[str, Any] = {"sources": sources, "clean": recipe.data.clean.identity()}
    identity["clean"]["decontaminate"].pop("path")
    if recipe.data.sources:
        identity["ids"] = "begin with the source's name"
    if any(section.sample_bytes or section.kind in _SYNTHETIC for section in sections.values()):
        identity["seed"] = recipe.run.seed
    return identity


def tokenizer_identity(recipe: Recipe) -> dict[str, Any]:
    """The identity of the tokenizer. The files of a pretrained one are inputs."""
    if recipe.tokenizer.is_ready:
        return {"tokenizer": {"kind": recipe.tokenizer.kind}, "seed": recipe.run.seed}
    targets = {"targets": True} if recipe.targets_are_text else {}
    return {"tokenizer": recipe.tokenizer.identity(), "seed": recipe.run.seed, **targets}


def tokens_identity(recipe: Recipe) -> dict[str, Any]:
    """The identity of the token shards."""
    return {"tokens": recipe.data.tokens.identity(), "seed": recipe.run.seed}
