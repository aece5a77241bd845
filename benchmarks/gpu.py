"""``make bench-gpu``: the DeepSeek model on one CUDA device beside its peers, as one table.

``python -m benchmarks.gpu [--quick] [--only MODULE] [--out FILE]``
"""

import sys

from benchmarks.table import run

_MODULES = ("gpu_attention", "gpu_model")

if __name__ == "__main__":
    sys.exit(run("python -m benchmarks.gpu", __doc__, "The DeepSeek model on one GPU", _MODULES, sys.argv[1:]))
