"""The one record type that every source yields and every stage reads."""

from typing import NamedTuple

from configs.schema import Recipe


class Document(NamedTuple):
    """A text and where it is from.

    Attributes:
        id: unique within its source, the same on every reading; the corpus has ``id_prefix`` before it.
        text: the text.
        source: the file it came from, relative to the source's root, or the source's name.
        kind: what sort of text it is (topic, module, class, function, text, record, pattern, pair, sequence).
        target: the text or the label that belongs to it, of a source that has such.
    """

    id: str
    text: str
    source: str
    kind: str
    target: str | None = None


def id_prefix(recipe: Recipe, source: str) -> str:
    """What the ids of a source's documents begin with in the corpus: the name of a source that has one, and a colon."""
    return f"{source}:" if source in recipe.data.sources else ""
