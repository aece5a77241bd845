"""``make bench-engine``: the loop beside a bare DeepSpeed loop, and what saving costs, as one table.

``python -m benchmarks.engine [--quick] [--only MODULE] [--out FILE]``; on a GPU where there is one.
"""

import sys

from benchmarks.table import run

_MODULES = ("step", "saving")

if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.engine", __doc__, "The engine", _MODULES, sys.argv[1:]))
