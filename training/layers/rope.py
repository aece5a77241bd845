"""RoPE with interleaved pairs (arXiv 2104.09864), YaRN context extension (arXiv 2309.00071), and sinusoids.

Models store no tables, so casting to bf16 cannot round them, and a model built on the meta device needs no extra setup.
Instead, each forward pass computes the T * R/2 sines and cosines once.
"""

import math
from typing import NamedTuple

import torch

from configs.schema.models.deepseek import YarnSection
from training.layers import cpu


class RotaryTable(NamedTuple):
    """The rotation of each pair at each position: [T, R/2], or [B, 1, T, R/2] for positions [B, T].

    Attributes:
        cos, sin: cosines and sines in fp32.
        freqs_cis: ``cos + i sin`` on CPU, computed once for all layers; elsewhere None.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    freqs_cis: torch.Tensor | None


def rotary_table(positions: torch.Tensor, rope_dim: int, theta: float, yarn: YarnSection | None = None) -> RotaryTable:
    """Build the table for positions [T] or [B, T] and heads with a rotary part of width ``rope_dim``.

    With YaRN, the table includes the ratio of the corrections for ``mscale`` and ``mscale_all_dim``. If the two are
    equal, as in DeepSeek-V3, the ratio is 1 and the entire correction is in :func:`softmax_scale`.
    """
    frequencies = inverse_frequencies(rope_dim, theta, yarn, positions.device)
    angles = positions.float()[..., None] * frequencies
    if positions.dim() == 2:
        angles = angles[:, None]
    amplitude = 1.0 if yarn is None else _amplitude(yarn)
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    return RotaryTable(cos, sin, cpu.rope.complex_table(cos, sin))


def rotate_tail(x: torch.Tensor, rope: RotaryTable) -> torch.Tensor:
    """Rotate the last R dimensions of ``x`` [B, heads, T, P + R] in interleaved pairs (x0, x1), (x2, x3), ..., in fp32.

    The first P dimensions are unchanged. The result is contiguous and has the dtype of ``x``.
    """
    out = cpu.rope.rotate_tail(x, rope.freqs_cis)
    if out is not None:
        return out
    cos, sin = rope.cos, rope.sin
    nope, tail = x.split((x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]), dim=-1)
    first, second = tail.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
    return torch.cat((nope, rotated.to(x.dtype)), dim=-1)


def sinusoidal(positions: torch.Tensor, size: int, theta: float = 10_000.0) -> torch.Tensor:
    """Return position embeddings of alternating sines and cosines, [..., size] in fp32 (arXiv 1706.03762)."""
    angles = positions.float()[..., None] * inverse_frequencies(size, theta, None, positions.device)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def inverse_frequencies(
    rope_dim: int, theta: float, yarn: YarnSection | None, device: torch.device | None = None
) -> torch.Tensor:
    """Return each pair's frequency in radians per position, [R/2] in fp32.

    With YaRN, pairs with more than ``beta_fast`` rotations within the original context keep their frequency, pairs with
    fewer than ``beta_slow`` are slowed down by ``factor``, and pairs in between are interpolated linearly.
    """
    exponents = torch.arange(0, rope_dim, 2, dtype=torch.float32, device=device) / rope_dim
    frequencies = 1.0 / theta**exponents
    if yarn is None:
        return frequencies

    def pair_with(rotations: float) -> float:
        wavelength_ratio = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return rope_dim * math.log(wavelength_ratio) / (2 * math.log(theta))

    low = max(math.floor(pair_with(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_with(yarn.beta_slow)), rope_dim - 1)
    width = high - low or 0.001  # in a small head the bounds can coincide: use a step, to avoid division by zero
    slowed = ((torch.arange(rope_dim // 2, dtype=torch.float32, device=device) - low) / width).clamp(0, 1)
    return frequencies / yarn.factor * slowed + frequencies * (1 - slowed)


def softmax_scale(head_dim: int, yarn: YarnSection | None) -> float:
    """Return the scale of attention scores: head_dim ** -0.5, times the squared ``mscale_all_dim`` factor of YaRN."""
    m = 1.0 if yarn is None else _mscale(yarn.factor, yarn.mscale_all_dim)
    return head_dim**-0.5 * m * m


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0


def _amplitude(yarn: YarnSection) -> float:
    # As in transformers, 0 means "not set": if either is 0, the table contains the plain YaRN correction.
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)
