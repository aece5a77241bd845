"""How long tests wait for what must happen, on however slow and busy a machine: only what hangs takes so long."""

import time
from collections.abc import Callable

import pytest

#: Seconds. What a test expects to be quick it does not time: it counts, or looks what was imported or repeated.
PATIENCE = 600


def wait_until(is_so: Callable[[], object], what: str, seconds: float = PATIENCE) -> float:
    """Wait; returns the seconds that it took."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() > began + seconds:
            pytest.fail(f"no {what} within {seconds:.0f} s")
        time.sleep(0.02)
    return time.monotonic() - began
