"""The loss in pieces equals PyTorch's on all logits at once."""

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training import block_sizes
from training.layers.cpu import kernels
from training.layers.cross_entropy import ChunkOperations, chunked_token_cross_entropy, token_cross_entropy
from training.layers.lm_head import linear_cross_entropy_sum, linear_token_cross_entropy


@pytest.fixture(params=["compiled", "pytorch"], autouse=True)
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pytorch":
            patch.setattr(kernels, "_code", lambda: None)
        elif shutil.which("cc") is None:
            pytest.skip("no C compiler")
        yield


def both(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, scale: float
) -> list[tuple[torch.Tensor, ...]]:
    results = []
    for ours in (True, False):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            loss = linear_cross_entropy_sum(x, w, labels)
        else:
            loss = F.cross_entropy((x @ w.t()).float().flatten(0, -2), labels.flatten(), reduction="sum")
        (loss * scale).backward()
        assert x.grad is not None and w.grad is not None
        results.append((loss.detach(), x.grad, w.grad))
    return results


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 40), vocab=st.integers(1, 70), piece=st.integers(1, 20), seed=st.integers(0, 999))
def test_any_piece_equals_torch(rows: int, vocab: int, piece: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, 12, generator=generator), torch.randn(vocab, 12, generator=generator)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.3] = -100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_sizes, "FEWEST_ROWS", piece)
        patch.setitem(block_sizes._LOGITS, "cpu", 1)
        ours, expected = both(hidden, weight, labels, 0.37)
        with torch.no_grad():
            torch.testing.assert_close(linear_cross_entropy_sum(hidden, weight, labels), ours[0])
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_bf16_logits_are_summed_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*s, generator=generator).to(torch.bfloat16) for s in ((2, 300, 16), (50, 16)))
    labels = torch.randint(0, 50, (2, 300), generator=generator)
    ours, expected = both(hidden, weight, labels, 1 / 600)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == ours[2].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0], expected[0], atol=0, rtol=1e-5)
    for one, other in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-2)


def test_nothing_to_predict_is_zero_with_zero_gradient() -> None:
    hidden, weight = torch.randn(4, 9).requires_grad_(), torch.randn(5, 9).requires_grad_()
    loss = linear_cross_entropy_sum(hidden, weight, torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None and not hidden.grad.any()
    assert weight.grad is not None and not weight.grad.any()


def test_huge_logits_stay_finite() -> None:
    hidden, weight = torch.ones(1, 1).requires_grad_(), torch.tensor([[3e4], [-3e4], [0.0]]).requires_grad_()
    loss = linear_cross_entropy_sum(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 6e4
    torch.testing.assert_close(weight.grad, torch.tensor([[1.0], [-1.0], [0.0]]))


def test_invalid_inputs_raise_or_give_nan() -> None:
    hidden, weight = torch.randn(3, 9).requires_grad_(), torch.randn(5, 9)
    for wrong in (5, -1):
        with pytest.raises((IndexError, RuntimeError)):
            linear_cross_entropy_sum(hidden, weight, torch.tensor([0, wrong, 1]))
    for number in (float("nan"), float("inf")):
        corrupted = torch.randn(40, 9)
        corrupted[17] = number
        assert linear_cross_entropy_sum(hidden, corrupted, torch.tensor([0, 2, 1])).isnan()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    vocab=st.integers(1, 70),
    piece=st.integers(1, 20),
    half=st.booleans(),
    trains_head=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_loss_of_each_token_has_torchs_gradients(
    rows: int, vocab: int, piece: int, half: bool, trains_head: bool, seed: int
) -> None:
    """With a different weight for every token, which is known only after the forward pass."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if half else torch.float32
    hidden, weight = (0.3 * torch.randn(n, 12, generator=generator).to(dtype) for n in (2 * rows, vocab))
    labels = torch.randint(0, vocab, (2, rows), generator=generator)
    labels[torch.rand(2, rows, generator=generator) < 0.3] = -100
    results = []

    def on_gpu(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """The operations of a GPU, which does not drop ignored labels first."""
        return chunked_token_cross_entropy(x.flatten(0, 1), w, labels.flatten(), ChunkOperations).view(2, -1)

    ways: tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], ...] = (
        lambda x, w: linear_token_cross_entropy(x, w, labels),
        on_gpu,
        lambda x, w: token_cross_entropy(x.float() @ w.float().t(), labels),
    )
    for losses_of in ways:
        x = hidden.view(2, rows, 12).clone().requires_grad_()
        w = weight.clone().requires_grad_(trains_head)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_sizes, "FEWEST_ROWS", piece)
            patch.setitem(block_sizes._LOGITS, "cpu", 1)
            losses = losses_of(x, w)
            (losses * losses.detach().sin()).sum().backward()
        assert losses.dtype == torch.float32 and losses.shape == labels.shape
        assert (losses[labels == -100] == 0).all()
        assert x.grad is not None and (w.grad is not None) == trains_head
        results.append([losses.detach(), x.grad, *([w.grad] if w.grad is not None else [])])
    # In bf16, logits and gradients are rounded to 8 bits.
    tolerance = {"atol": 0.05, "rtol": 0.05} if half else {"atol": 1e-4, "rtol": 1e-5}
    for ours in results[:2]:
        for one, other in zip(ours, results[2], strict=True):
            torch.testing.assert_close(one, other, **tolerance)
