"""RoPE on CPU, as one complex multiplication in the forward pass and one in the backward pass."""

from typing import Any

import torch


def complex_table(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor | None:
    """Return ``cos + i sin`` for :func:`rotate_tail`, or None if the table is not on CPU."""
    return torch.complex(cos, sin) if cos.is_cpu else None


def rotate_tail(x: torch.Tensor, freqs_cis: torch.Tensor | None) -> torch.Tensor | None:
    """Apply :func:`training.layers.rope.rotate_tail` with a complex table.

    Returns None if there is no table, or under ``torch.compile``.
    """
    if freqs_cis is None or torch.compiler.is_compiling():
        return None
    if not torch.is_grad_enabled():
        return _rotate(x, freqs_cis)
    out: torch.Tensor = _RotateTail.apply(x, freqs_cis)
    return out


class _RotateTail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, freqs_cis: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(freqs_cis)
        return _rotate(x, freqs_cis)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (freqs_cis,) = ctx.saved_tensors
        # This is the inverse rotation. An amplitude in the table scales both passes.
        return _rotate(upstream[0], freqs_cis.conj()), None


def _rotate(x: torch.Tensor, freqs_cis: torch.Tensor) -> torch.Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    tail = out[..., -2 * freqs_cis.shape[-1] :].view(*out.shape[:-1], -1, 2)
    if out.dtype == torch.float32 and out.shape[-1] % 2 == 0:
        torch.view_as_complex(tail).mul_(freqs_cis)
    else:
        tail.copy_(torch.view_as_real(torch.view_as_complex(tail.float().contiguous()) * freqs_cis))
    return out
