"""The interface that every source implements: it lists its parts, and reads each part into documents."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from pipeline.document import Document
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.storage.files import File

#: The source's recipe key, if there is only one source.
KEY = "data.source"

#: Maximum bytes of a line, an archive member and a text that is read in one piece, and maximum characters of a `csv`
#: field. Anything larger is in a different format than the recipe says, or has to be read in chunks.
MOST_BYTES = 256 << 20


class Part(NamedTuple):
    """A piece of a source that is small enough for one process. It is picklable.

    Attributes:
        size: number of the source's stored bytes that the part covers. Progress is measured in these bytes.
        where: the location from which ``read`` gets the content. For a part of a solid archive, it is the content
            itself, because such an archive can only be read from the start.
        carried: approximate size in bytes of the content that the part itself contains.
    """

    size: int
    where: tuple[Any, ...]
    carried: int = 0


class Source(Protocol):
    """A source of documents. It is picklable, so that other processes can read its parts."""

    @property
    def name(self) -> str:
        """Name of the source, for messages."""

    @property
    def warning(self) -> str | None:
        """Warning to print before the source is read, or None."""

    @property
    def partition_scheme(self) -> str:
        """Description of how the source is divided into parts. If it changes, existing parts are not reused."""

    def inputs(self) -> dict[str, str | dict[str, File]]:
        """Return a map from each input's name to its files, or to a string that identifies its content.

        If any of the files or strings change, the documents become stale.
        """

    def size(self, workers: int) -> int | None:
        """Return the total stored size of all parts in bytes, or None if it is unknown before reading."""

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part. The order does not depend on ``workers``, the number of processes that find the parts.

        Parts that contain content are created one at a time, so memory use stays bounded.
        """

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        """Yield the documents of a part, in a fixed order. Inputs that cannot be read are counted in ``bad``."""

    def details(self) -> dict[str, Any]:
        """Return the details to record in the manifest, in addition to the counts."""
