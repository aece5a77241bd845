"""Linear layers, norms, experts and latent attention of few rows on CPU, without gradients: what decoding consists of.

PyTorch's products read a matrix several rows at a time, which for a single row or eight means a third of the memory's
speed. The C code beside this file reads each matrix once, in order. Every function here gives None where that is not
the way (more rows, gradients, other devices and dtypes, no compiler): the caller has the way for all cases.
"""

import ctypes
import functools
from pathlib import Path

import torch

from artefacts.native import library

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-march=native", "-fopenmp", "-ffp-contract=fast")
#: Rows up to which reading the matrix, not arithmetic, takes the time.
_FEW = 16
_DTYPES = (torch.float32, torch.bfloat16)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """``x @ weight.T + bias``: [..., in] -> [..., out]; ``weight`` [out, in]."""
    code = _code_for(x, weight)
    if code is None:
        return None
    x = x.contiguous()
    outputs, inputs = weight.shape
    y = x.new_empty(*x.shape[:-1], outputs)
    places = x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr()
    _succeeded(code.few_linear(*places, x.numel() // inputs, outputs, inputs, x.dtype == torch.bfloat16))
    return y


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor | None:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension, accumulated in fp32."""
    code = _code_for(x, weight)
    if code is None:
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    places = x.data_ptr(), weight.data_ptr(), y.data_ptr()
    code.few_rms_norm(*places, x.numel() // x.shape[-1], x.shape[-1], eps, x.dtype == torch.bfloat16)
    return y


def experts(
    x_MD: torch.Tensor,
    weights_MK: torch.Tensor,
    selected_MK: torch.Tensor,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor | None:
    """Each token's SwiGLU experts times their weights (fp32), summed: [M, D]."""
    code = _code_for(x_MD, gate_up_E2FD)
    if code is None:
        return None
    x_MD, weights_MK, selected_MK = x_MD.contiguous(), weights_MK.contiguous(), selected_MK.contiguous()
    y_MD = torch.empty_like(x_MD)
    tensors = (x_MD, weights_MK, selected_MK, gate_up_E2FD, down_EDF, y_MD)
    count, hidden, width = down_EDF.shape
    sizes = (*selected_MK.shape, count, width, hidden, x_MD.dtype == torch.bfloat16)
    _succeeded(code.few_experts(*(tensor.data_ptr() for tensor in tensors), *sizes))
    return y_MD


def latent_attention(
    q_BNTQ: torch.Tensor, entries_BLc: torch.Tensor, expand_NeC: torch.Tensor, seen_BT: torch.Tensor, scale: float
) -> torch.Tensor | None:
    """Attention of queries to the first ``seen_BT`` (int64) cached entries, by absorbed projections: [B, T, N, Z].

    An entry is a latent C and a rotated key; ``expand_NeC`` makes a head's keys and values of a latent.
    """
    samples, heads, length, query = q_BNTQ.shape
    code = _code_for(q_BNTQ[:, 0], expand_NeC)
    if code is None:
        return None
    latent = expand_NeC.shape[2]
    rope = entries_BLc.shape[2] - latent
    values = expand_NeC.shape[1] - (query - rope)
    q_BNTQ, out_BTNZ = q_BNTQ.contiguous(), q_BNTQ.new_empty(samples, length, heads, values)
    places = [tensor.data_ptr() for tensor in (q_BNTQ, entries_BLc, expand_NeC, seen_BT, out_BTNZ)]
    sizes = (samples, heads, length, query - rope, rope, values, latent, entries_BLc.stride(0))
    _succeeded(code.few_attention(*places, *sizes, scale, q_BNTQ.dtype == torch.bfloat16))
    return out_BTNZ


def _code_for(x: torch.Tensor, weight: torch.Tensor) -> ctypes.CDLL | None:
    """The C code, where it is for this: a few rows in memory, nobody asking for gradients."""
    if torch.is_grad_enabled() or not x.is_cpu or torch.compiler.is_compiling():
        return None
    if x.numel() > _FEW * x.shape[-1] or x.dtype not in _DTYPES or weight.dtype != x.dtype:
        return None
    return _code() if weight.is_contiguous() else None


@functools.cache
def _code() -> ctypes.CDLL | None:
    code = library(_SOURCE, *_FLAGS)
    if code is not None:
        pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        code.few_linear.argtypes = [pointer] * 4 + [number] * 3 + [flag]
        code.few_rms_norm.argtypes = [pointer] * 3 + [number] * 2 + [ctypes.c_float, flag]
        code.few_rms_norm.restype = None
        code.few_experts.argtypes = [pointer] * 6 + [number] * 5 + [flag]
        code.few_attention.argtypes = [pointer] * 5 + [number] * 8 + [ctypes.c_float, flag]
    return code


def _succeeded(status: int) -> None:
    if status:
        raise MemoryError("no memory for a decoding step")
