"""The CPU code of GELU against PyTorch in double precision."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from training.layers.activations import gelu_new
from training.layers.cpu import kernels

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
TOLERANCES = {torch.float32: 4e-7, torch.bfloat16: 8e-3}


def expected_of(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(1,), (15,), (3, 16), (2, 3, 4099), (40_001,)])
def test_equals_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    x = (4 * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()
    upstream = torch.randn(shape, generator=generator).to(dtype)
    wide = x.detach().double().requires_grad_()
    out, expected = gelu_new(x), expected_of(wide)
    assert type(out.grad_fn).__name__ == "_GeluNewBackward"
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    (gradient,) = torch.autograd.grad(out, x, upstream)
    (right,) = torch.autograd.grad(expected, wide, upstream.double())
    torch.testing.assert_close(gradient.double(), right, atol=3 * tolerance, rtol=3 * tolerance)


def test_as_accurate_as_pytorch_everywhere() -> None:
    """The largest error is at most a quarter above PyTorch's, where GELU is not just x or 0."""
    x = torch.linspace(-14, 14, 2_000_001).requires_grad_()
    right = expected_of(x.detach().double())
    ours, theirs = ((out.detach().double() - right).abs().max() for out in (gelu_new(x), expected_of(x)))
    assert ours <= 1.25 * theirs


def test_large_inputs_and_nan() -> None:
    far = [-1e8, -200.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 200.0, 1e8]
    x = torch.tensor([*far, float("nan")]).requires_grad_()
    out = gelu_new(x)
    torch.testing.assert_close(out, expected_of(x), atol=1e-7, rtol=1e-6, equal_nan=True)
    (slope,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(slope[:-1], torch.tensor([0.0] * 3 + [0.5] * 3 + [1.0] * 3))
    assert slope[-1].isnan()


def test_strides_and_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 40, requires_grad=True)
    above = torch.randn(40, 6).t()
    (gradient,) = torch.autograd.grad(gelu_new(x.t()).t(), x, above)
    monkeypatch.setattr(kernels, "_code", lambda: None)
    out = gelu_new(x.t()).t()
    assert type(out.grad_fn).__name__ != "_GeluNewBackward"
    torch.testing.assert_close(gradient, torch.autograd.grad(out, x, above)[0], atol=1e-6, rtol=1e-5)
