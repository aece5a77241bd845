"""The C code beside this file, for what PyTorch does slowly on CPU; compiled on first use, and done without otherwise.

Numbers are passed as addresses: who calls has made sure of dtypes, shapes and strides as ``kernels.c`` wants them.
Its threads are OpenMP's. A library that was compiled with GCC shares them with torch's; with another compiler, or a
torch that ships an OpenMP under another name, they are a second set.
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
    """The C code, where it can be had and is for these: on CPU, all of one dtype that it knows."""
    first = tensors[0]
    if first.dtype not in _DTYPES or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    for tensor in tensors:
        # Not those that stand for others, whose addresses mean nothing.
        if not tensor.is_cpu or tensor.dtype != first.dtype or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return None
    return _code()


def ready() -> bool:
    """Compile now what else would be compiled in the middle of a first sentence; whether it is there."""
    return _code() is not None


def is_half(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.bfloat16


def succeeded(status: int) -> None:
    """Raises MemoryError where the code found no room."""
    if status:
        raise MemoryError("no memory for what a layer works out in between")


@functools.cache
def _code() -> ctypes.CDLL | None:
    code = library(_SOURCE, *_FLAGS)
    if code is not None:
        for name, arguments in _ARGUMENTS.items():
            getattr(code, name).argtypes = arguments
    return code
