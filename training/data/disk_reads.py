"""Detects from the kernel's counters whether samples are read from disk or from the page cache."""

import resource

#: After this many consecutive batches from the page cache, later batches are expected to be cached too.
_PATIENCE = 32
#: Use this thread's counters, or the process's on systems without per-thread counters.
_WHOSE = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)


class DiskReads:
    """Decides whether to announce reads to the kernel, which makes disk reads much faster but cached reads slower."""

    def __init__(self) -> None:
        self._remaining, self._last_count = _PATIENCE, 0

    def expected(self) -> bool:
        """Return whether the next batch may have to be read from disk.

        Returns True at first, and for a while after every batch that was read from disk.
        """
        used = resource.getrusage(_WHOSE)
        count = used.ru_inblock + used.ru_majflt
        self._remaining = _PATIENCE if count != self._last_count else max(0, self._remaining - 1)
        self._last_count = count
        return self._remaining > 0
