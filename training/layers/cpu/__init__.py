"""The layers' CPU paths: everything that is computed differently on CPU than on GPU.

Each public function returns its result, or None if PyTorch's own operation is the better choice: on other devices,
under ``torch.compile``, and for shapes and dtypes that would not benefit. A layer therefore calls these functions as
follows::

    out = cpu.matmul.linear(x, weight, bias)
    return F.linear(x, weight, bias) if out is None else out

The C code is in ``kernels.c``. Without a C compiler, the functions fall back to PyTorch's operations. Outside the
layers, only ``cpu.compile_kernels`` is used.
"""

from training.layers.cpu import attention, cross_entropy, decode, experts, gelu, matmul, norms, rope, swiglu
from training.layers.cpu.kernels import compile_kernels

__all__ = [
    "attention",
    "compile_kernels",
    "cross_entropy",
    "decode",
    "experts",
    "gelu",
    "matmul",
    "norms",
    "rope",
    "swiglu",
]
