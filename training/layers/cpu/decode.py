"""Decoding operations on CPU: linear layers, norms, GELU, experts and attention for a few rows, without gradients.

PyTorch's matrix products read several rows of a matrix at a time. With one to eight input rows, those products reach
only a third of the memory bandwidth. The C code in ``kernels.c`` reads each matrix once, in order. Every function
returns None if the C code cannot be used: for too many rows, with gradients enabled, on another device, in another
dtype, or without a compiler.
"""

import ctypes

import torch

from training.layers.cpu.kernels import code_for, is_half, succeeded

#: Up to this many rows, reading the matrix takes longer than the arithmetic.
_FEW = 16


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor | None:
    """Return ``x @ weight.T + bias``: [..., in] -> [..., out], with ``weight`` [out, in]."""
    if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return None
    code = _code_for(x, weight) if bias is None else _code_for(x, weight, bias)
    if code is None:
        return None
    x = x.contiguous()
    outputs, inputs = weight.shape
    y = x.new_empty(*x.shape[:-1], outputs)
    addresses = x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr()
    succeeded(code.few_linear(*addresses, x.numel() // inputs, outputs, inputs, is_half(x)))
    return y


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor | None:
    """Return ``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension, accumulated in fp32."""
    code = _code_for(x, weight) if weight.shape == x.shape[-1:] else None
    if code is None:
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    addresses = x.data_ptr(), weight.data_ptr(), y.data_ptr()
    code.few_rms_norm(*addresses, x.numel() // x.shape[-1], x.shape[-1], eps, is_half(x))
    return y


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor | None:
    """Return ``weight * (x - mean) / sqrt(variance + eps) + bias`` over the last dimension, accumulated in fp32."""
    code = _code_for(x, weight) if bias is None else _code_for(x, weight, bias)
    if code is None or weight.shape != x.shape[-1:]:
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    addresses = x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr()
    code.few_layer_norm(*addresses, x.numel() // x.shape[-1], x.shape[-1], eps, is_half(x))
    return y


def gelu(x: torch.Tensor, tanh: bool = False) -> torch.Tensor | None:
    """Return GELU(x), or its tanh approximation if ``tanh`` is True: [...] -> [...]."""
    code = _code_for(x)
    if code is None:
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    code.gelu(x.data_ptr(), None, y.data_ptr(), x.numel(), tanh, is_half(x))
    return y


def attention(
    q_BNTH: torch.Tensor,
    entries_BNLc: torch.Tensor,
    visible_lengths_BT: torch.Tensor,
    scale: float,
    window: int | None = None,
    slopes_N: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Compute causal attention to cached entries that hold a key and a value each (c = 2H). Returns [B, T, N, H].

    ``visible_lengths_BT`` (int64) is the number of entries up to and including each token's own. If ``window`` is set,
    a token attends only to the last ``window`` of its visible entries. ``slopes_N`` (fp32) are ALiBi's slopes.
    """
    samples, heads, length, width = q_BNTH.shape
    code = _code_for(q_BNTH[:, 0])
    strides = entries_BNLc.stride()
    if code is None or entries_BNLc.dtype != q_BNTH.dtype or strides[2:] != (2 * width, 1):
        return None
    q_BNTH, visible_lengths_BT = q_BNTH.contiguous(), visible_lengths_BT.contiguous()
    out_BTNH = q_BNTH.new_empty(samples, length, heads, width)
    slopes = None if slopes_N is None else slopes_N.data_ptr()
    addresses = q_BNTH.data_ptr(), entries_BNLc.data_ptr(), visible_lengths_BT.data_ptr(), slopes, out_BTNH.data_ptr()
    sizes = (samples, heads, length, width, *strides[:2], window or 0)
    succeeded(code.few_heads(*addresses, *sizes, scale, is_half(q_BNTH)))
    return out_BTNH


def experts(
    x_MD: torch.Tensor,
    weights_MK: torch.Tensor,
    selected_MK: torch.Tensor,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor | None:
    """Sum the outputs of each token's SwiGLU experts, scaled by their gate weights (fp32): [M, D] -> [M, D]."""
    code = _code_for(x_MD, gate_up_E2FD, down_EDF)
    if code is None or weights_MK.dtype != torch.float32 or selected_MK.dtype != torch.int64:
        return None
    x_MD, weights_MK, selected_MK = x_MD.contiguous(), weights_MK.contiguous(), selected_MK.contiguous()
    y_MD = torch.empty_like(x_MD)
    tensors = (x_MD, weights_MK, selected_MK, gate_up_E2FD, down_EDF, y_MD)
    count, hidden, width = down_EDF.shape
    sizes = (*selected_MK.shape, count, width, hidden, is_half(x_MD))
    succeeded(code.few_experts(*(tensor.data_ptr() for tensor in tensors), *sizes))
    return y_MD


def latent_attention(
    q_BNTQ: torch.Tensor,
    entries_BLc: torch.Tensor,
    expand_NeC: torch.Tensor,
    visible_lengths_BT: torch.Tensor,
    scale: float,
) -> torch.Tensor | None:
    """Compute each query's attention [B, T, N, Z] to its first ``visible_lengths_BT`` (int64) cached entries.

    An entry consists of a latent of width C and a rotary key. ``expand_NeC`` projects a latent to each head's
    non-rotary key and value. The projection is absorbed into the queries and outputs.
    """
    samples, heads, length, query = q_BNTQ.shape
    code = _code_for(q_BNTQ[:, 0], expand_NeC)
    if code is None or entries_BLc.dtype != q_BNTQ.dtype or entries_BLc.stride()[1:] != (entries_BLc.shape[2], 1):
        return None
    latent = expand_NeC.shape[2]
    rope = entries_BLc.shape[2] - latent
    values = expand_NeC.shape[1] - (query - rope)
    q_BNTQ, out_BTNZ = q_BNTQ.contiguous(), q_BNTQ.new_empty(samples, length, heads, values)
    tensors = (q_BNTQ, entries_BLc, expand_NeC, visible_lengths_BT.contiguous(), out_BTNZ)
    addresses = [tensor.data_ptr() for tensor in tensors]
    sizes = (samples, heads, length, query - rope, rope, values, latent, entries_BLc.stride(0))
    succeeded(code.few_attention(*addresses, *sizes, scale, is_half(q_BNTQ)))
    return out_BTNZ


def _code_for(x: torch.Tensor, *weights: torch.Tensor) -> ctypes.CDLL | None:
    """Return the compiled C code if it supports the inputs: few rows, contiguous weights, no gradients or autocast."""
    if torch.is_grad_enabled() or not 0 < x.numel() <= _FEW * x.shape[-1] or torch.is_autocast_enabled("cpu"):
        return None
    return code_for(x, *weights) if all(weight.is_contiguous() for weight in weights) else None
