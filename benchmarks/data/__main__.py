"""``make bench-data``: run every benchmark of the data stages, and print one table with the machine and the versions.

``python -m benchmarks.data [--quick] [--out FILE]``. For memory by corpus size, see ``benchmarks.data.memory``.
"""

import sys

from benchmarks.table import run

_MODULES = ("sources", "encode", "filters", "dedup", "loader", "pipeline")

if __name__ == "__main__":
    sys.exit(
        run("python -m benchmarks.data", __doc__, "The data stages compared with their peers", _MODULES, sys.argv[1:])
    )
