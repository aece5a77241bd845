"""Whether samples come from disk or from the page cache, by the kernel's counts for this thread."""

import resource

#: Batches read from memory alone after which the next are expected there too.
_PATIENCE = 32
#: Counts of this thread, or where there are none of the process, which only announces more often.
_WHOSE = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


class DiskReads:
    """Announcing reads saves most of the time on disk and costs half of it in memory: so only while it is of use."""

    def __init__(self) -> None:
        self._left, self._seen = _PATIENCE, 0

    def expected(self) -> bool:
        """Whether the next batch may need the disk: the first ones, and those soon after one that did."""
        used = resource.getrusage(_WHOSE)
        count = used.ru_inblock + used.ru_majflt
        self._left = _PATIENCE if count != self._seen else max(0, self._left - 1)
        self._seen = count
        return self._left > 0
