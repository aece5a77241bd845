"""Causal attention against PyTorch's, and rotary positions."""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode

from configs.schema.models.deepseek import YarnSection
from training.layers.attention import causal_attention
from training.layers.cpu import attention as cpu_attention
from training.layers.packed_documents import Documents
from training.layers.rope import inverse_frequencies, rotary_table, rotate_tail, softmax_scale


@pytest.mark.parametrize("length", [1, 5, 128, 129, 300])
@pytest.mark.parametrize("longest_blocked", [0, 2048])
def test_equals_torch(length: int, longest_blocked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "LONGEST_BLOCKED", longest_blocked)
    generator = torch.Generator().manual_seed(length)
    leaves = [torch.randn(2, 3, length, width, generator=generator) for width in (24, 24, 16)]
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    theirs = [leaf.clone().double().requires_grad_() for leaf in leaves]
    out = causal_attention(ours[0], ours[1], ours[2], 0.3)
    expected = F.scaled_dot_product_attention(*theirs, is_causal=True, scale=0.3)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
    weights = torch.randn(out.shape, generator=generator)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("longest_blocked", [20, 2048])
@pytest.mark.parametrize("lengths", [[[300], [300]], [[5, 123, 1, 171], [128, 172]], [[1] * 300, [150, 150]]])
def test_documents_equal_separate_samples(
    lengths: list[list[int]], longest_blocked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "LONGEST_BLOCKED", longest_blocked)
    generator = torch.Generator().manual_seed(1)
    ours = [torch.randn(2, 3, 300, width, generator=generator).requires_grad_() for width in (24, 24, 16)]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    starts = torch.tensor([0, *accumulate(length for row in lengths for length in row)], dtype=torch.int32)
    documents = Documents(starts, 2, 300)
    out = causal_attention(ours[0], ours[1], ours[2], 0.3, documents)
    rows = []
    for row, sizes in enumerate(lengths):
        parts = zip(*(leaf[row].split(sizes, dim=1) for leaf in theirs), strict=True)
        rows.append(torch.cat([F.scaled_dot_product_attention(*p, is_causal=True, scale=0.3) for p in parts], dim=1))
    expected = torch.stack(rows)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
    weights = torch.randn(out.shape, generator=generator)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad.float(), atol=1e-5, rtol=1e-5)


def test_the_mask_for_gpus_keeps_documents_apart() -> None:
    """FlexAttention itself, uncompiled, with our block mask."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 256, width, generator=generator) for width in (24, 24, 16))
    documents = Documents(torch.tensor([0, 100, 256, 256 + 17, 512], dtype=torch.int32), 2, 256)
    out = flex_attention(q, k, v, block_mask=documents.block_mask(), scale=0.3)
    torch.testing.assert_close(out, causal_attention(q, k, v, 0.3, documents), atol=1e-5, rtol=1e-5)


def test_attention_over_documents_costs_the_sum_of_their_squares() -> None:
    """Counts products: sixteen documents of 128 cost a sixteenth of one of 2,048, up to complete blocks."""

    def flops(sizes: list[int]) -> int:
        q, k, v = (torch.randn(1, 2, sum(sizes), 16) for _ in range(3))
        documents = Documents(torch.tensor([0, *accumulate(sizes)], dtype=torch.int32), 1, sum(sizes))
        with FlopCounterMode(display=False) as counter:
            causal_attention(q, k, v, 0.3, documents)
        return counter.get_total_flops()

    whole, split, uneven = flops([2048]), flops([128] * 16), flops([1024] + [64] * 16)
    # In blocks of 128 rows: a document of n blocks costs n (n + 1) / 2 of them.
    assert whole / split == pytest.approx(136 / 16)
    assert whole / uneven == pytest.approx(136 / (36 + 8))


def test_rotated_products_depend_only_on_distance() -> None:
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    rope = rotary_table(torch.arange(50), 8, 10_000.0)
    rotated_q, rotated_k = (rotate_tail(x.expand(1, 1, 50, 8), rope)[0, 0] for x in (q, k))
    products = rotated_q @ rotated_k.T
    for distance in (0, 3, 20):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(products[0, 0], q @ k)


def test_rotation_of_bf16_is_computed_in_fp32() -> None:
    x = torch.randn(1, 2, 400, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    rope = rotary_table(torch.arange(400), 8, 10_000.0)
    assert rope[0].dtype == torch.float32
    assert torch.equal(rotate_tail(x, rope), rotate_tail(x.float(), rope).to(torch.bfloat16))


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    yarn = YarnSection(factor=40.0, original_max_position_embeddings=4096)
    plain, stretched = inverse_frequencies(64, 10_000.0, None), inverse_frequencies(64, 10_000.0, yarn)
    ratio = plain / stretched
    torch.testing.assert_close(ratio[:10], torch.ones(10))
    torch.testing.assert_close(ratio[-8:], torch.full((8,), 40.0))
    assert torch.all(ratio.diff() >= -1e-5)
    assert softmax_scale(192, yarn) == pytest.approx(192**-0.5 * 1.3688879**2)
    assert softmax_scale(192, None) == 192**-0.5
