"""What every source of documents provides: its parts, and the documents of each part."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from pipeline.document import Document
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.storage.files import File

#: The recipe's key of a single source.
KEY = "data.source"


class Part(NamedTuple):
    """A piece of a source that is small enough for one process; picklable.

    Attributes:
        size: stored bytes of the source that it covers. Progress is counted in them.
        where: what the source's ``read`` needs to find it. A part of a solid archive carries its compressed content,
            because such an archive can only be read from the start.
        carried: approximate bytes of that content.
    """

    size: int
    where: tuple[Any, ...]
    carried: int = 0


class Source(Protocol):
    """A source of documents; picklable, so that other processes can read its parts."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def warning(self) -> str | None:
        """What to print before the source is read; None: nothing."""

    @property
    def partition_scheme(self) -> str:
        """How the source is divided into parts. Parts are reused only if this is unchanged."""

    def inputs(self) -> dict[str, str | dict[str, File]]:
        """Name -> files to read, or a string that identifies the content. A change makes the documents stale."""

    def size(self, workers: int) -> int | None:
        """Stored bytes of all parts; None: unknown before reading."""

    def parts(self, workers: int) -> Iterator[Part]:
        """Every part, in a fixed order for any number of ``workers`` (processes that may be used to find the parts).

        Parts that carry content are created one at a time, so memory stays bounded.
        """

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        """The documents of a part, in a fixed order. Inputs that cannot be read are counted in ``bad``."""

    def details(self) -> dict[str, Any]:
        """What to record in the manifest in addition to the counts."""
