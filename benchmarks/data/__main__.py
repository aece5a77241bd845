"""``make bench-data``: every benchmark of the data stages, as one table, with the machine and the versions.

``python -m benchmarks.data [--quick] [--out FILE]``. See ``benchmarks.data.memory`` for memory by corpus size.
"""

import sys

from benchmarks.table import run

_MODULES = ("sources", "encode", "filters", "dedup", "loader", "pipeline")

if __name__ == "__main__":
    sys.exit(
        run("python -m benchmarks.data", __doc__, "The data stages compared with their peers", _MODULES, sys.argv[1:])
    )
