"""Loads ``kernels.c``, which replaces operations that are slow in PyTorch on CPU. The C code is compiled on first use.

Tensors are passed as addresses, so callers must guarantee the dtypes, shapes and strides that ``kernels.c`` expects.
The code uses OpenMP. If compiled with GCC, the code shares torch's thread pool. With another compiler, or with a torch
build that ships OpenMP under a different name, the code has its own thread pool.
"""

import ctypes
import functools
from pathlib import Path

import torch

from artefacts.c_library import library

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-march=native", "-fopenmp", "-ffp-contract=fast")
_POINTER, _NUMBER, _FACTOR, _FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_ARGUMENTS = {
    "few_linear": [_POINTER] * 4 + [_NUMBER] * 3 + [_FLAG],
    "few_rms_norm": [_POINTER] * 3 + [_NUMBER] * 2 + [_FACTOR, _FLAG],
    "few_layer_norm": [_POINTER] * 4 + [_NUMBER] * 2 + [_FACTOR, _FLAG],
    "few_heads": [_POINTER] * 5 + [_NUMBER] * 7 + [_FACTOR, _FLAG],
    "few_experts": [_POINTER] * 6 + [_NUMBER] * 5 + [_FLAG],
    "few_attention": [_POINTER] * 5 + [_NUMBER] * 8 + [_FACTOR, _FLAG],
    "swiglu": [_POINTER] * 4 + [_NUMBER] * 3 + [_FLAG],
    "swiglu_backward": [_POINTER] * 8 + [_NUMBER] * 4 + [_FLAG],
    "gelu": [_POINTER] * 3 + [_NUMBER] + [_FLAG] * 2,
    "softmax_loss": [_POINTER] * 4 + [_NUMBER] * 2 + [_FLAG],
}
_DTYPES = (torch.float32, torch.bfloat16)


def code_for(*tensors: torch.Tensor) -> ctypes.CDLL | None:
    """Return the compiled C code, or None if it failed to compile or the tensors are not all fp32 or bf16 on CPU."""
    first = tensors[0]
    if first.dtype not in _DTYPES or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    for tensor in tensors:
        # Subclasses such as fake tensors have no data at their addresses.
        if not tensor.is_cpu or tensor.dtype != first.dtype or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return None
    return _code()


def compile_kernels() -> bool:
    """Compile the C code now rather than during the first completion. Returns whether compilation succeeded."""
    return _code() is not None


def is_half(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.bfloat16


def succeeded(status: int) -> None:
    """Check the status that a C function returned.

    Raises:
        MemoryError: the function could not allocate its buffers.
    """
    if status:
        raise MemoryError("out of memory for a layer's intermediate results")


@functools.cache
def _code() -> ctypes.CDLL | None:
    code = library(_SOURCE, *_FLAGS)
    if code is not None:
        for name, arguments in _ARGUMENTS.items():
            getattr(code, name).argtypes = arguments
    return code
