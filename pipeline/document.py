"""The record type that every source yields and every stage reads."""

from typing import NamedTuple

from configs.schema import Recipe


class Document(NamedTuple):
    """A text and its origin.

    Attributes:
        id: unique within the source, and the same every time the source is read. The corpus prepends ``id_prefix``.
        text: the text.
        source: the file that contains the text, relative to the source's root, or the source's name.
        kind: the kind of text (topic, module, class, function, text, record, pattern, pair, sequence).
        target: the text or label that the model learns to predict, or None if there is none.
    """

    id: str
    text: str
    source: str
    kind: str
    target: str | None = None


def id_prefix(recipe: Recipe, source: str) -> str:
    """Return the prefix for a source's document ids: its name and a colon, or "" if the recipe doesn't name sources."""
    return f"{source}:" if source in recipe.data.sources else ""
