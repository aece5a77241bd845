"""``make bench-engine``: our training loop against a bare DeepSpeed loop, and the cost of saving, as one table.

``python -m benchmarks.engine [--quick] [--only MODULE] [--out FILE]``; on a GPU if there is one.
"""

import sys

from benchmarks.table import run

_MODULES = ("step", "saving")

if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.engine", __doc__, "The engine", _MODULES, sys.argv[1:]))
