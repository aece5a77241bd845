"""``make bench-data``: every benchmark of the data stages, as one table, with the machine and the versions.

``python -m benchmarks.data [--quick] [--out FILE]``; memory as a corpus grows is ``python -m benchmarks.data_memory``.
"""

import sys

from benchmarks.table import run

_MODULES = ("data_sources", "data_encode", "data_filters", "data_dedup", "data_loader", "data_pipeline")

if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.data", __doc__, "The data stages beside their peers", _MODULES, sys.argv[1:]))
