"""Progress bars on a terminal. In a log file, they print a line every 20 seconds, so that the log stays readable."""

import os
import sys
from typing import Any

from tqdm import tqdm

from artefacts import signals
from artefacts.worker_status import TERMINAL


class _Bar(tqdm):
    def update(self, n: float | None = 1) -> bool | None:
        signals.check()
        return super().update(n)


def log(text: str) -> None:
    """Print a line to stderr, above any progress bar."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def warn(text: str) -> None:
    """Print a warning to stderr."""
    log(f"warning: {text}")


def bar(total: float | None, unit: str, name: str, **options: Any) -> tqdm:
    """Create a tqdm bar on stderr. Without a terminal, it refreshes every 20 seconds.

    Each rank's output goes to its own file. If the launcher shows that file on a terminal, the bar refreshes every
    second.

    Raises:
        KeyboardInterrupt: from ``update`` after Ctrl-C, or its subclass StoppedError after SIGTERM or SIGUSR1.
    """
    if not sys.stderr.isatty():
        options.setdefault("mininterval", 1 if TERMINAL in os.environ else 20)
    return _Bar(total=total, unit=unit, desc=name, dynamic_ncols=True, unit_scale=True, file=sys.stderr, **options)
