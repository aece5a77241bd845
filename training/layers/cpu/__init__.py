"""The layers' CPU paths: everything that is computed differently on CPU than on GPU.

Each operation that a layer calls returns its result, or None if PyTorch's own operation is the better choice: on other
devices, under ``torch.compile``, and for shapes and dtypes that would not benefit. A layer therefore calls an operation
as follows::

    out = cpu.matmul.linear(x, weight, bias)
    return F.linear(x, weight, bias) if out is None else out

The layers also use three names that are not operations: ``rope.complex_table`` prepares a table for an operation, and
``attention.FUSED_OPERATION`` and ``matmul.product_width`` identify operations for activation checkpointing. The other
public functions are parts of operations, and are used only in this package.

The C code is in ``kernels.c``. Without a C compiler, the functions fall back to PyTorch's operations. Outside the
layers, only ``cpu.compile_kernels`` is used, which compiles the code before the first operation needs it.
"""

from training.layers.cpu import attention, cross_entropy, decode, experts, gelu, low_rank, matmul, norms, rope, swiglu
from training.layers.cpu.kernels import compile_kernels

__all__ = [
    "attention",
    "compile_kernels",
    "cross_entropy",
    "decode",
    "experts",
    "gelu",
    "low_rank",
    "matmul",
    "norms",
    "rope",
    "swiglu",
]
