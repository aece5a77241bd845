"""The one record type that every source yields and every stage reads."""

from typing import NamedTuple


class Document(NamedTuple):
    """A text and where it is from.

    Attributes:
        id: unique within the corpus, the same on every reading.
        text: the text.
        source: the file it came from, relative to the source's root, or the source's name.
        kind: what sort of text it is (topic, module, class, function, text, record).
    """

    id: str
    text: str
    source: str
    kind: str
