"""The CPU code of SwiGLU against PyTorch, forward and backward, with and without the C code."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F

from training.layers.activations import silu_times
from training.layers.cpu import kernels
from training.layers.cpu.swiglu import weighted_swiglu, weighted_swiglu_backward

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
SHAPES = [(1, 1), (3, 15), (5, 16), (7, 40), (300, 113)]


@pytest.fixture(params=["compiled", "pytorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        monkeypatch.setattr(kernels, "_code", lambda: None)
    elif shutil.which("cc") is None:
        pytest.skip("no C compiler")
    else:
        assert kernels._code() is not None
    return request.param


def drawn(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate and up [R, F] as halves of one tensor, weights [R, 1], and the gradient from above."""
    generator = torch.Generator().manual_seed(rows * width)
    gate_up = 3 * torch.randn(rows, 2 * width, generator=generator)
    weights, upstream = torch.rand(rows, 1, generator=generator), torch.randn(rows, width, generator=generator)
    gate, up = gate_up.to(dtype).chunk(2, dim=1)
    return gate, up, weights, upstream.to(dtype)


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance * 10, rtol=tolerance * 4)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_weighted(way: str, rows: int, width: int, dtype: torch.dtype) -> None:
    gate, up, weights, upstream = drawn(rows, width, dtype)
    wide = [tensor.double().detach().requires_grad_() for tensor in (gate, up, weights)]
    expected = F.silu(wide[0]) * wide[1] * wide[2]
    gradients = torch.autograd.grad(expected, wide, upstream.double())
    hidden = weighted_swiglu(gate, up, weights)
    assert hidden.dtype == dtype
    close(hidden, expected, dtype)
    dgate_up = torch.empty(rows, 2 * width, dtype=dtype)
    dgate, dup = dgate_up.chunk(2, dim=1)
    result = weighted_swiglu_backward(gate, up, weights, upstream, dgate, dup)
    assert result is not None
    torch.testing.assert_close(result[0], hidden)
    # The sum over a row is in fp32, of products of what is rounded at most.
    close(result[1][:, None] / math.sqrt(width), gradients[2] / math.sqrt(width), dtype)
    close(dgate, gradients[0], dtype)
    close(dup, gradients[1], dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_in_the_graph(way: str, dtype: torch.dtype) -> None:
    gate, up, _, upstream = drawn(6, 40, dtype)
    gate, up = (tensor.reshape(2, 3, 40).detach().requires_grad_() for tensor in (gate, up))
    wide = [tensor.double().detach().requires_grad_() for tensor in (gate, up)]
    expected = F.silu(wide[0]) * wide[1]
    out = silu_times(gate, up)
    close(out, expected, dtype)
    # A gradient that is not contiguous, as of a transposed result.
    above = upstream.reshape(3, 2, 40).transpose(0, 1)
    for gradient, right in zip(
        torch.autograd.grad(out, (gate, up), above), torch.autograd.grad(expected, wide, above.double()), strict=True
    ):
        close(gradient, right, dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_large_inputs_and_nan(way: str, dtype: torch.dtype) -> None:
    far = [-float("inf"), -1e38, -1e4, -200.0, -89.0, -88.0, -87.0, -1e-30, 0.0, 1e-30, 87.0, 88.0, 89.0, 200.0, 1e38]
    gate = torch.tensor([[*far, float("nan")] * 2 + far], dtype=dtype)
    up = torch.ones_like(gate)
    torch.testing.assert_close(weighted_swiglu(gate, up), F.silu(gate), atol=1e-6, rtol=1e-5, equal_nan=True)
    dgate, dup = torch.empty_like(gate), torch.empty_like(gate)
    weighted_swiglu_backward(gate, up, None, up, dgate, dup)
    silu = F.silu(gate.float())
    torch.testing.assert_close(dup.float(), silu, atol=1e-6, rtol=1e-2, equal_nan=True)
    finite = gate.isfinite()
    x = gate.double()[finite]
    close(dgate[finite], x.sigmoid() * (1 + x * (1 - x.sigmoid())), dtype)
    assert dgate[gate.isnan()].isnan().all()
