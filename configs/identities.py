"""Identities of the data artefacts. An artefact's identity is the set of recipe keys that it depends on."""

from typing import Any

from configs.schema import Recipe

#: Source keys that are not part of the documents' identity. For the first three, the content is fingerprinted instead.
NOT_IN_DOCUMENTS = ("path", "target_path", "revision", "weight")
#: Kinds of source whose documents are generated from the seed.
_SYNTHETIC = ("patterns", "sequences")


def documents_identity(recipe: Recipe) -> dict[str, Any]:
    """Return the documents' identity. A source's content is an input, so its path is not part of the identity."""
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
    """Return the tokenizer's identity. The files of a pretrained tokenizer are inputs, not part of the identity."""
    if recipe.tokenizer.is_ready:
        return {"tokenizer": {"kind": recipe.tokenizer.kind}, "seed": recipe.run.seed}
    targets = {"targets": True} if recipe.targets_are_text else {}
    return {"tokenizer": recipe.tokenizer.identity(), "seed": recipe.run.seed, **targets}


def tokens_identity(recipe: Recipe) -> dict[str, Any]:
    """Return the token shards' identity."""
    return {"tokens": recipe.data.tokens.identity(), "seed": recipe.run.seed}
