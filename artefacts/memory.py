"""This process's peak memory use."""

import resource
import sys


def peak_resident_bytes() -> int:
    """Return this process's peak resident memory in bytes. ``getrusage`` reports bytes on macOS and KiB elsewhere."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
