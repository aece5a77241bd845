"""``make bench-model``: run every benchmark of the models, and print one table with the machine and the versions.

``python -m benchmarks.model [--quick] [--only MODULE] [--out FILE]``. NANOGPT=FILE names nanoGPT's ``model.py``; see
:mod:`benchmarks.model.dense`.
"""

import sys

from benchmarks.table import run

_MODULES = ("step", "decode", "evaluate", "memory", "documents", "window", "packed_examples", "dense", "lora")

if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.model", __doc__, "The models and their peers", _MODULES, sys.argv[1:]))
