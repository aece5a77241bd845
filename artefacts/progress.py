"""A progress bar on a terminal; elsewhere a line now and then, so that logs stay readable."""

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
    """A line on stderr, above whatever bar stands there."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def warn(text: str) -> None:
    """A warning on stderr."""
    log(f"warning: {text}")


def bar(total: float | None, unit: str, name: str, **options: Any) -> tqdm:
    """A tqdm bar on stderr; where nobody looks at a terminal it refreshes every 20 seconds.

    A rank's output goes to a file; its launcher says whether that is shown on a terminal.

    Raises:
        KeyboardInterrupt: from ``update``; the command was asked to stop (StoppedError: by SIGTERM or SIGUSR1).
    """
    if not sys.stderr.isatty():
        options.setdefault("mininterval", 1 if TERMINAL in os.environ else 20)
    return _Bar(total=total, unit=unit, desc=name, dynamic_ncols=True, unit_scale=True, file=sys.stderr, **options)
