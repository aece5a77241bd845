"""The record type that every source yields and every stage reads."""

from typing import NamedTuple

from configs.schema import Recipe


class Document(NamedTuple):
    """A text and its origin.

    Attributes:
        id: unique within its source, and the same on every reading. The corpus puts ``id_prefix`` before it.
        text: the text.
        source: the file that it comes from, relative to the root of the source; or the name of the source.
        kind: the kind of text (topic, module, class, function, text, record, pattern, pair, sequence).
        target: the text or label that belongs to it; None: it has none.
    """

    id: str
    text: str
    source: str
    kind: str
    target: str | None = None


def id_prefix(recipe: Recipe, source: str) -> str:
    """The prefix of a source's document ids in the corpus: its name and a colon, if the recipe names its sources."""
    return f"{source}:" if source in recipe.data.sources else ""
