"""The interface of every source of documents: it lists its parts, and reads each part into documents."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from pipeline.document import Document
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.storage.files import File

#: The recipe key of a source that is the only one.
KEY = "data.source"

#: Maximum bytes of a line, an archive member and a text that is read in one piece, and maximum characters of a `csv`
#: field. Anything larger is in a different format than the recipe says, or has to be read in chunks.
MOST_BYTES = 256 << 20


class Part(NamedTuple):
    """A piece of a source that is small enough for one process. It is picklable.

    Attributes:
        size: stored bytes of the source that it covers. Progress is measured in these.
        where: what the source's ``read`` needs to find it. A part of a solid archive carries the content itself,
            because such an archive can only be read from the start.
        carried: approximate bytes of content that it carries.
    """

    size: int
    where: tuple[Any, ...]
    carried: int = 0


class Source(Protocol):
    """A source of documents. It is picklable, so that other processes can read its parts."""

    @property
    def name(self) -> str:
        """Name of the source in messages."""

    @property
    def warning(self) -> str | None:
        """Warning to print before the source is read, or None."""

    @property
    def partition_scheme(self) -> str:
        """Description of how the source is divided into parts. Parts are reused only if this is unchanged."""

    def inputs(self) -> dict[str, str | dict[str, File]]:
        """Return name -> files to read, or a string that identifies the content. A change makes the documents stale."""

    def size(self, workers: int) -> int | None:
        """Return the stored bytes of all parts, or None if that is unknown before reading."""

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part, in the same order for any number of ``workers`` (processes to use for finding the parts).

        Parts that carry content are created one at a time, so memory use stays bounded.
        """

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        """Yield the documents of a part, in a fixed order. Inputs that cannot be read are counted in ``bad``."""

    def details(self) -> dict[str, Any]:
        """Return the details to record in the manifest, in addition to the counts."""
