"""The recipe keys that each data artefact depends on: what must be the same for it to be up to date."""

from typing import Any

from configs.schema import Recipe

#: Kinds of source whose documents follow from the seed.
_SYNTHETIC = ("patterns", "sequences")


def documents_identity(recipe: Recipe) -> dict[str, Any]:
    """Of the documents. Where a source lies and how often it is drawn from do not matter; its content is an input."""
    sections = recipe.data.named_sources
    left_out = ("path", "target_path", "revision", "weight")
    sources = {
        name: {key: value for key, value in section.identity().items() if key not in left_out}
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
    """Of the tokenizer; of one that is taken from elsewhere, its files are inputs."""
    if recipe.tokenizer.is_ready:
        return {"tokenizer": {"kind": recipe.tokenizer.kind}, "seed": recipe.run.seed}
    targets = {"targets": True} if recipe.targets_are_text else {}
    return {"tokenizer": recipe.tokenizer.identity(), "seed": recipe.run.seed, **targets}


def tokens_identity(recipe: Recipe) -> dict[str, Any]:
    """Of the token shards."""
    return {"tokens": recipe.data.tokens.identity(), "seed": recipe.run.seed}
