"""Where text comes from: each source lists its parts and reads each part into documents."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from configs.schema import Recipe
from configs.schema.data import SourceSection
from pipeline.document import Document
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.storage.files import File

#: The recipe's key of a single source.
KEY = "data.source"


class Part(NamedTuple):
    """A piece of work of a source, small enough for one process; picklable.

    Attributes:
        size: bytes of the source, as it is stored, that it covers; what progress is counted in.
        where: what the source's ``read`` needs to find it. A part of a solid archive, which cannot be entered half-way,
            carries its (compressed) content.
        carried: bytes of such content, about.
    """

    size: int
    where: tuple[Any, ...]
    carried: int = 0


class Source(Protocol):
    """A source of documents; picklable, so that its parts can be read in other processes."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def remark(self) -> str | None:
        """What the user should be told before it is read."""

    @property
    def parting(self) -> str:
        """How it is cut into parts; differs when the same source would be cut otherwise."""

    def inputs(self) -> dict[str, str | dict[str, File]]:
        """Name -> files that it reads, or what tells its content from another's; a change makes the documents stale."""

    def size(self, workers: int) -> int | None:
        """Bytes of the source over all parts; None where that is not known beforehand."""

    def parts(self, workers: int) -> Iterator[Part]:
        """Every part, in a fixed order that does not depend on ``workers`` (processes that may be used to find them).

        Nothing large is held: parts that carry content are made one at a time.
        """

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        """Documents of a part, in a fixed order; what cannot be read is counted in ``bad``."""

    def details(self) -> dict[str, Any]:
        """What the manifest should record beside the counts."""


def open_source(section: SourceSection, recipe: Recipe) -> Source:
    """The source that a section of the recipe names.

    Raises:
        RequestError: there is nothing at its path.
    """
    if not section.path:
        return _made_here(section, recipe)
    return _of_files(section, section.path, recipe.data.key_of(section))


def _made_here(section: SourceSection, recipe: Recipe) -> Source:
    """Texts that every machine has, or that are made up."""
    if section.kind == "pydocs":
        from pipeline.sources.pydocs import PydocsSource

        return PydocsSource.of(section, recipe)
    if section.kind == "patterns":
        from pipeline.sources.synthetic.patterns import PatternsSource

        return PatternsSource(
            section.documents, section.min_chars, section.max_chars, section.largest_step, recipe.run.seed
        )
    from pipeline.sources.synthetic.sequences import SequencesSource

    return SequencesSource(
        section.documents, section.min_chars, section.max_chars, section.symbols, section.task, recipe.run.seed
    )


def _of_files(section: SourceSection, path: str, key: str) -> Source:
    if section.kind == "parallel":
        from pipeline.sources.parallel import ParallelSource

        return ParallelSource(path, str(section.target_path), section.encoding, key=key)
    if section.kind == "hub":
        from pipeline.sources.hub import HubSource

        return HubSource(path, section.text_field, section.split, section.config, section.revision, key=key)
    if section.kind == "text":
        from pipeline.sources.text import TextSource

        return TextSource(
            path,
            section.chunk_chars,
            section.chunk,
            section.chunk_overlap,
            section.merge,
            section.encoding,
            key=key,
        )
    if section.kind == "openwebtext":
        from pipeline.sources.openwebtext import OpenWebTextSource

        return OpenWebTextSource(path, key=key)
    if section.kind == "parquet":
        from pipeline.sources.parquet import ParquetSource

        return ParquetSource(path, section.text_field, section.target_field, key=key)
    if section.kind == "csv":
        from pipeline.sources.csv import CsvSource

        return CsvSource(path, section.text_field, section.encoding, section.delimiter, section.target_field, key=key)
    from pipeline.sources.jsonl import JsonlSource

    return JsonlSource(path, section.text_field, section.encoding, section.target_field, key=key)
