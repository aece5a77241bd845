"""Where text comes from: each source lists its parts and reads each part into documents."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from configs.schema import Recipe
from pipeline.bad_inputs import BadInputs
from pipeline.document import Document


class Source(Protocol):
    """A source of documents; picklable, so that its parts can be read in other processes."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def inputs(self) -> dict[str, str]:
        """Name -> fingerprint of what it reads; a change makes the documents stale."""

    def parts(self, workers: int) -> Sequence[Any]:
        """Pieces of work in a fixed order, each small enough for one process; picklable, ``repr`` tells them apart."""

    def read(self, part: Any, bad: BadInputs) -> Iterator[Document]:
        """Documents of a part, in a fixed order; what cannot be read is counted in ``bad``."""

    def details(self) -> dict[str, Any]:
        """What the manifest should record beside the counts."""


def open_source(recipe: Recipe) -> Source:
    """The source that ``data.source`` names.

    Raises:
        RequestError: there is nothing at ``data.source.path``.
    """
    section = recipe.data.source
    if section.kind == "pydocs":
        from pipeline.sources.pydocs import PydocsSource

        return PydocsSource.of(recipe)
    assert section.path is not None
    if section.kind == "text":
        from pipeline.sources.text import TextSource

        return TextSource(section.path, section.chunk_chars)
    from pipeline.sources.jsonl import JsonlSource

    return JsonlSource(section.path, section.text_field)
