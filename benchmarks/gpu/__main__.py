"""``make bench-gpu``: compare the DeepSeek model with its peers on one CUDA device, and print one table.

``python -m benchmarks.gpu [--quick] [--only MODULE] [--out FILE]``
"""

import sys

import torch

from benchmarks.table import run

_MODULES = ("attention", "model")

if __name__ == "__main__":
    if not torch.cuda.is_available():
        print("error: torch sees no CUDA device here: run this where there is one", file=sys.stderr)
        sys.exit(2)
    sys.exit(run("python -m benchmarks.gpu", __doc__, "The DeepSeek model on one GPU", _MODULES, sys.argv[1:]))
