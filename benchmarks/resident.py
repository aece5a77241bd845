"""Measurement of a task's peak resident memory, in a fresh process."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from artefacts.checkout import CHECKOUT


def fresh_peak(module: str, *arguments: str) -> float:
    """Run ``python -m MODULE ARGUMENTS``, which prints the result of ``grown_by``, and return that number of bytes."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "MALLOC_MMAP_THRESHOLD_": "65536"}
    # With a fixed threshold, freed memory goes back to the system, so the peak shows only memory in use.
    environment.pop("MALLOC_MMAP_MAX_", None)
    command = [sys.executable, "-m", module, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def grown_by(work: Callable[[], None]) -> int:
    """Return the peak growth of resident memory in bytes while ``work`` runs, sampled every millisecond."""
    before, highest, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, _resident())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    done.set()
    thread.join()
    return highest - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
