"""Matrix products with transposed weights, ``x @ w.T``, by the fastest library that PyTorch has for them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

from training.layers.cpu import decode
from training.layers.cpu.matmul import ONEDNN_PRODUCT, _by_onednn, _LinearOnCpu, times_transposed

if ONEDNN_PRODUCT is not None and torch.ops.mkldnn._linear_pointwise not in flop_registry:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(x_shape) * weight_shape[0]


class Linear(nn.Linear):
    """``nn.Linear``, quick on CPU: with few rows and no gradients, and in fp32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``: [..., in] -> [..., out]; ``weight`` [out, in]."""
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    if (few := decode.linear(x, weight, bias)) is not None:
        return few
    if not torch.is_grad_enabled() or not _by_onednn(x, weight, bias):
        return times_transposed(x, weight, bias)
    out: torch.Tensor = _LinearOnCpu.apply(x, weight, bias)
    return out
