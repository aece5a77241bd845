"""``make bench-model``: every benchmark of the DeepSeek model, as one table, with the machine and the versions.

``python -m benchmarks.model [--quick] [--only MODULE] [--out FILE]``
"""

import sys

from benchmarks.table import run

_MODULES = ("model_step", "model_decode", "model_memory", "model_documents", "model_window")

if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.model", __doc__, "The DeepSeek model beside its peers", _MODULES, sys.argv[1:]))
