"""Cross entropy in pieces equals PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from training import losses
from training.losses import cross_entropy_sum


def both(logits: torch.Tensor, labels: torch.Tensor, scale: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    results = []
    for ours in (True, False):
        leaf = logits.clone().requires_grad_()
        if ours:
            loss, _ = cross_entropy_sum(leaf, labels)
        else:
            loss = F.cross_entropy(leaf.float().flatten(0, -2), labels.flatten(), reduction="sum")
        (loss * scale).backward()
        assert leaf.grad is not None
        results.append((loss.detach(), leaf.grad))
    return results


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), vocab=st.integers(1, 70), chunk=st.integers(1, 300), seed=st.integers(0, 999))
def test_any_chunk_equals_torch(rows: int, vocab: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(rows, vocab, generator=generator)
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.3] = -100
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses._CHUNK, "cpu", chunk)
        (loss, gradient), (expected, expected_gradient) = both(logits, labels, 0.37)
        assert cross_entropy_sum(logits, labels)[1] == (labels != -100).sum()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits = torch.randn(2, 300, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    labels = torch.randint(0, 50, (2, 300), generator=torch.Generator().manual_seed(1))
    (loss, gradient), (expected, expected_gradient) = both(logits, labels, 1 / 600)
    assert loss.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(loss, expected, atol=0, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient)


def test_nothing_to_predict_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(4, 9).requires_grad_()
    loss, count = cross_entropy_sum(logits, torch.full((4,), -100))
    loss.backward()
    assert loss.item() == 0.0 and count.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0]]).requires_grad_()
    loss, _ = cross_entropy_sum(logits, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 6e4
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0]]))
