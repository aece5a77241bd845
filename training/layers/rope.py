"""Rotary positions in interleaved pairs (arXiv 2104.09864) with YaRN context extension (arXiv 2309.00071); sinusoids.

Everything is a pure function of the recipe: no table is stored, so casting a model to bf16 cannot round one, and a
model built on the meta device needs no second step. A table costs T * R/2 sines and cosines once a forward pass.
"""

import math
from typing import Any, NamedTuple

import torch

from configs.schema.models.deepseek import YarnSection


class Rotation(NamedTuple):
    """How far each pair is turned at each position: [T, R/2], or [B, 1, T, R/2] of positions [B, T].

    Attributes:
        cos, sin: in fp32.
        turn: the two as complex numbers, on CPU.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    turn: torch.Tensor | None


def rotation(positions: torch.Tensor, rope_dim: int, theta: float, yarn: YarnSection | None = None) -> Rotation:
    """The turn of pair i of a head at each of the positions, [T] or [B, T].

    Under YaRN they carry the factor by which ``mscale`` and ``mscale_all_dim`` differ; where the two are equal, as in
    DeepSeek-V3, that factor is 1 and the whole correction is in :func:`softmax_scale`.
    """
    frequencies = inverse_frequencies(rope_dim, theta, yarn, positions.device)
    angles = positions.float()[..., None] * frequencies
    if positions.dim() == 2:
        angles = angles[:, None]
    amplitude = 1.0 if yarn is None else _amplitude(yarn)
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    return Rotation(cos, sin, torch.complex(cos, sin) if cos.device.type == "cpu" else None)


def rotate_tail(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn the last R numbers of ``x`` [B, heads, T, P + R] in interleaved pairs (x0, x1), (x2, x3), ..., in fp32.

    The first P pass through. Contiguous, in the dtype of ``x``.
    """
    if rotation.turn is not None and not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():
            return _turned(x, rotation.turn)
        out: torch.Tensor = _RotateTailOnCpu.apply(x, rotation.turn)
        return out
    cos, sin = rotation.cos, rotation.sin
    nope, rope = x.split((x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]), dim=-1)
    first, second = rope.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
    return torch.cat((nope, turned.to(x.dtype)), dim=-1)


class _RotateTailOnCpu(torch.autograd.Function):
    """The same as one copy and one product of complex numbers, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(turn)
        return _turned(x, turn)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (turn,) = ctx.saved_tensors
        # Turned back about the same axis; an amplitude in the table applies to both ways.
        return _turned(upstream[0], turn.conj()), None


def _turned(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    tail = out[..., -2 * turn.shape[-1] :].view(*out.shape[:-1], -1, 2)
    if out.dtype == torch.float32 and out.shape[-1] % 2 == 0:
        torch.view_as_complex(tail).mul_(turn)
    else:
        tail.copy_(torch.view_as_real(torch.view_as_complex(tail.float().contiguous()) * turn))
    return out


def sinusoidal(positions: torch.Tensor, size: int, theta: float = 10_000.0) -> torch.Tensor:
    """Sines and cosines in turn of the positions at falling frequencies (arXiv 1706.03762): [..., size] in fp32."""
    angles = positions.float()[..., None] * inverse_frequencies(size, theta, None, positions.device)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def inverse_frequencies(
    rope_dim: int, theta: float, yarn: YarnSection | None, device: torch.device | None = None
) -> torch.Tensor:
    """Radians per position of each pair, [R/2] in fp32; under YaRN a ramp blends ``f / factor`` with ``f``.

    Pairs that turn more than ``beta_fast`` times within the original context keep their frequency, those that turn
    less than ``beta_slow`` times are slowed by ``factor``, and those between are mixed linearly.
    """
    exponents = torch.arange(0, rope_dim, 2, dtype=torch.float32, device=device) / rope_dim
    frequencies = 1.0 / theta**exponents
    if yarn is None:
        return frequencies

    def pair_that_turns(times: float) -> float:
        wavelength_ratio = yarn.original_max_position_embeddings / (times * 2 * math.pi)
        return rope_dim * math.log(wavelength_ratio) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), rope_dim - 1)
    width = high - low or 0.001  # the two bounds can meet in a small head: a step then, not a division by zero
    slowed = ((torch.arange(rope_dim // 2, dtype=torch.float32, device=device) - low) / width).clamp(0, 1)
    return frequencies / yarn.factor * slowed + frequencies * (1 - slowed)


def softmax_scale(head_dim: int, yarn: YarnSection | None) -> float:
    """What attention scores are multiplied by: head_dim ** -0.5, times m squared under YaRN."""
    m = 1.0 if yarn is None else _mscale(yarn.factor, yarn.mscale_all_dim)
    return head_dim**-0.5 * m * m


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0


def _amplitude(yarn: YarnSection) -> float:
    # transformers' rule: a zero in either means "not given", and the plain YaRN correction goes into the tables.
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)
