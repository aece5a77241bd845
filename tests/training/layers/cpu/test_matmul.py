"""Linear layers on CPU give the same as ``F.linear``, forward and backward, and refuse the same inputs."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from training.layers.activations import silu_times
from training.layers.cpu import matmul
from training.layers.cpu.matmul import times_transposed
from training.layers.linear import Linear, linear
from training.layers.norms import RMSNorm


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the inputs that oneDNN was given."""
    if matmul.ONEDNN_PRODUCT is None:
        pytest.skip("this PyTorch has no oneDNN")
    seen, original = [], matmul.ONEDNN_PRODUCT

    def spied(x: torch.Tensor, *rest: Any) -> Any:
        seen.append(x.shape)
        return original(x, *rest)

    monkeypatch.setattr(matmul, "ONEDNN_PRODUCT", spied)
    monkeypatch.setattr(matmul, "onednn_in_fp32", lambda: True)
    return seen


def both(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, upstream: torch.Tensor | None = None
) -> None:
    """Ours against ``F.linear``: results, and gradients of everything that has one."""
    sides = []
    for product in (linear, F.linear):
        inputs = [None if tensor is None else tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        out = product(*inputs)  # type: ignore[operator]
        above = torch.ones_like(out) if upstream is None else upstream
        sides.append((out, *torch.autograd.grad(out, [tensor for tensor in inputs if tensor is not None], above)))
    for ours, plain in zip(*sides, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(40, 24), (3, 17, 24), (1, 24), (24,)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear(shape: tuple[int, ...], biased: bool, taken: list[torch.Size]) -> None:
    torch.manual_seed(0)
    both(torch.randn(shape), torch.randn(31, 24), torch.randn(31) if biased else None)
    # Forward, and backward for the input's gradient.
    assert len(taken) == 2


def test_strides_of_every_kind(taken: list[torch.Size]) -> None:
    torch.manual_seed(0)
    both(torch.randn(24, 40).t(), torch.randn(31, 24), None)
    both(torch.randn(40, 48)[:, ::2], torch.randn(24, 31).t(), None, torch.randn(31, 40).t())
    both(torch.randn(40, 24), torch.randn(31, 24), torch.randn(31), torch.randn(1, 31).expand(40, 31))
    assert len(taken) == 6
    both(torch.randn(40, 24), torch.randn(31, 24), torch.randn(62)[::2])
    assert len(taken) == 6


def test_only_required_gradients_are_computed() -> None:
    layer = Linear(24, 31).requires_grad_(False)
    x = torch.randn(40, 24, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    layer = Linear(24, 31)
    layer(x.detach()).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(31, 24))


def test_where_onednn_is_not_used(taken: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(40, 24), torch.randn(31, 24)
    with torch.backends.mkldnn.flags(enabled=False):
        both(x, weight, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    both(x.double(), weight.double(), None)
    assert not taken
    monkeypatch.setattr(matmul, "onednn_in_fp32", lambda: False)
    both(x, weight, torch.randn(31))
    assert not taken


def test_wrong_shapes_are_refused() -> None:
    for rows in (1, 40):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                for weight in (torch.randn(31, 25), torch.empty(0), torch.randn(2, 31, 24)):
                    with pytest.raises(RuntimeError):
                        linear(torch.randn(rows, 24), weight)
    with torch.no_grad():
        assert linear(torch.randn(0, 24), torch.randn(31, 24)).shape == (0, 31)
        assert times_transposed(torch.randn(0, 24), torch.randn(31, 24)).shape == (0, 31)


@pytest.mark.parametrize("name", ["linear", "swiglu", "norm"])
def test_second_gradients_are_refused_and_not_wrong(name: str, taken: list[torch.Size]) -> None:
    x = torch.randn(40, 24, requires_grad=True)
    layers: dict[str, Any] = {
        "linear": Linear(24, 24),
        "swiglu": lambda tensor: silu_times(tensor, tensor),
        "norm": RMSNorm(24),
    }
    (first,) = torch.autograd.grad(layers[name](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()
