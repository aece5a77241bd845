"""``make bench-engine``: compare our training loop with a bare DeepSpeed loop, and measure the cost of saving.

``python -m benchmarks.engine [--quick] [--only MODULE] [--out FILE]`` prints one table. It uses a GPU if there is one.
"""

import sys

from benchmarks.table import run

_MODULES = ("step", "saving")

if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.engine", __doc__, "The engine", _MODULES, sys.argv[1:]))
