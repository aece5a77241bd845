"""``make bench-model``: every benchmark of the models, as one table, with the machine and the versions.

``python -m benchmarks.model [--quick] [--only MODULE] [--out FILE]``; NANOGPT=FILE names nanoGPT's ``model.py``, see
:mod:`benchmarks.model_dense`.
"""

import sys

from benchmarks.table import run

_MODULES = ("model_step", "model_decode", "model_memory", "model_documents", "model_window", "model_dense")

if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.model", __doc__, "The models beside their peers", _MODULES, sys.argv[1:]))
