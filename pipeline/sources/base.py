"""TODO: pipeline/sources/base.py."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

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
