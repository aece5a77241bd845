"""Layers of dense transformers against PyTorch, transformers and plain loops."""

import dataclasses
import math
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from tests.support.training.families import encoder, gpt
from training.layers.attention import attention, attention_weights, masked_flex_attention
from training.layers.masks import Mask, alibi_sides, alibi_slopes
from training.layers.multi_head import SelfAttention, Source
from training.layers.packed_documents import Documents
from training.layers.rope import sinusoidal
from training.layers.transformer_layer import TransformerLayer
from training.models.encoder import EncoderForTokens, init_weights
from training.models.encoder_decoder import pooled

#: More than two blocks of queries of the CPU path.
LENGTH, HEADS = 300, 4
LENGTHS = torch.tensor([300, 7, 160])
MASKS = {
    "causal": Mask(True),
    "both ways": Mask(False),
    "causal window": Mask(True, 5),
    "wide window": Mask(True, 200),
    "window both ways": Mask(False, 5),
    "lengths": Mask(False, lengths_B=LENGTHS),
    "alibi": Mask(True, slopes_N=alibi_slopes(HEADS)),
    "slopes both ways": Mask(False, slopes_N=alibi_slopes(HEADS), lengths_B=LENGTHS),
    "alibi both ways": Mask(False, None, alibi_slopes(HEADS, None, False), LENGTHS, sides_N=alibi_sides(HEADS)),
    "sides": Mask(False, sides_N=alibi_sides(HEADS)),
    "all of them": Mask(False, 9, alibi_slopes(HEADS), LENGTHS, sides_N=alibi_sides(HEADS)),
    "all that is causal": Mask(True, 130, alibi_slopes(HEADS), LENGTHS),
}
masks = pytest.mark.parametrize("name", MASKS)


def explicit(mask: Mask, samples: int, length: int = LENGTH) -> torch.Tensor:
    """The bias of scores [B, N, T, L], from the description of the mask."""
    query, key = torch.arange(length)[:, None], torch.arange(length)
    seen = key <= query if mask.causal else torch.ones(length, length, dtype=torch.bool)
    if mask.window is not None:
        seen = seen & ((query - key).abs() < mask.window)
    added = torch.zeros(samples, HEADS, length, length, dtype=torch.float64)
    if mask.slopes_N is not None:
        added -= mask.slopes_N.double()[:, None, None] * (query - key).abs()
    added = added.masked_fill(~seen, float("-inf"))
    if mask.sides_N is not None:
        before, after = key < query, key > query
        added[:, mask.sides_N == -1] = added[:, mask.sides_N == -1].masked_fill(after, float("-inf"))
        added[:, mask.sides_N == 1] = added[:, mask.sides_N == 1].masked_fill(before, float("-inf"))
    if mask.lengths_B is not None:
        added = added.masked_fill(key >= mask.lengths_B[:samples, None, None, None], float("-inf"))
    return added


def valid_rows(mask: Mask, samples: int) -> torch.Tensor:
    """Which positions [B, T] of the result are valid."""
    if mask.lengths_B is None:
        return torch.ones(samples, LENGTH, dtype=torch.bool)
    return torch.arange(LENGTH) < mask.lengths_B[:samples, None]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(ours: torch.Tensor, theirs: torch.Tensor, what: str = "") -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), atol=2e-5, rtol=1e-4, msg=what or None)


@masks
def test_self_attention_equals_torch_with_an_explicit_mask(name: str) -> None:
    mask, x_BTD = MASKS[name], drawn(3, LENGTH, 32, seed=1)
    layer = SelfAttention(encoder(num_attention_heads=HEADS))
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in layer.qkv_proj(x_BTD).chunk(3, dim=-1))
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=explicit(mask, 3))
    expected = layer.o_proj(expected.float().transpose(1, 2).flatten(2))
    seen, upstream = valid_rows(mask, 3), drawn(3, LENGTH, 32, seed=2)
    gradients = []
    for out in (layer(x_BTD, mask), expected):
        layer.zero_grad()
        (out * upstream)[seen].sum().backward(retain_graph=True)
        gradients.append([parameter.grad.clone() for parameter in layer.parameters()])
    same(layer(x_BTD, mask)[seen], expected[seen])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@masks
def test_attention_weights_are_those_of_attention(name: str) -> None:
    mask = MASKS[name]
    q, k, v = (drawn(3, HEADS, LENGTH, 8, seed=seed) for seed in range(3))
    weights = attention_weights(q, k, 0.3, mask)
    same(weights.sum(-1), torch.ones(3, HEADS, LENGTH))
    seen = valid_rows(mask, 3)
    same((weights @ v).transpose(1, 2)[seen], attention(q, k, v, 0.3, mask).transpose(1, 2)[seen])


def test_dropout_zeroes_weights_and_scales_the_others() -> None:
    """In one block, against PyTorch's gradient of the same with the same draws."""
    inputs = [[drawn(3, HEADS, 100, 8, seed=seed).requires_grad_() for seed in range(3)] for _ in range(2)]
    torch.manual_seed(4)
    out = attention(*inputs[0], 0.3, Mask(True, 20), dropout=0.4)
    torch.manual_seed(4)
    q, k, v = inputs[1]
    weights = attention_weights(q, k, 0.3, Mask(True, 20))
    chosen = torch.empty(3 * HEADS, 100, 100, dtype=torch.bool).bernoulli_(0.6).view_as(weights)
    expected = weights * chosen / 0.6 @ v
    same(out, expected)
    for result in (out, expected):
        result.square().sum().backward()
    for one, other in zip(*inputs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


@masks
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_equals_the_blocks(name: str) -> None:
    """What a GPU computes, here uncompiled."""
    mask = dataclasses.replace(MASKS[name], _block_masks={})
    q, k, v = (drawn(3, HEADS, LENGTH, 16, seed=seed) for seed in range(3))
    with torch.no_grad():
        out = masked_flex_attention(q, k, v, 0.25, mask, flex_attention)
    seen = valid_rows(mask, 3)
    same(out.transpose(1, 2)[seen], attention(q, k, v, 0.25, mask).transpose(1, 2)[seen])


@pytest.mark.parametrize("name", ["causal", "causal window", "wide window", "alibi"])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_documents_equal_separate_samples(name: str) -> None:
    sizes = [[300], [5, 123, 1, 171]]
    starts = torch.tensor([0, *accumulate(size for row in sizes for size in row)], dtype=torch.int32)
    mask = dataclasses.replace(MASKS[name], documents=Documents(starts, 2, LENGTH), _block_masks={})
    q, k, v = (drawn(2, HEADS, LENGTH, 16, seed=seed) for seed in range(3))
    rows = []
    for row, lengths in enumerate(sizes):
        parts = zip(*(tensor[row : row + 1].split(lengths, dim=2) for tensor in (q, k, v)), strict=True)
        rows.append(torch.cat([attention(*part, 0.25, MASKS[name]) for part in parts], dim=2))
    expected = torch.cat(rows)
    same(attention(q, k, v, 0.25, mask), expected)
    same(attention_weights(q, k, 0.25, mask) @ v, expected)
    score_mod, block_mask = mask.flex(LENGTH, LENGTH, q.device)
    with torch.no_grad():
        out: Any = flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=0.25)
    same(out, expected)


def test_fully_masked_padding_gives_no_nan() -> None:
    """A row of one token under a window of two, and a source of none."""
    layer = TransformerLayer(encoder(), norm_first=False, cross=True)
    x_BTD = drawn(2, 9, 32).requires_grad_()
    source = Source(drawn(2, 4, 32, seed=1), Mask(False, lengths_B=torch.tensor([0, 4])))
    out = layer(x_BTD, Mask(False, 2, lengths_B=torch.tensor([1, 9])), source=source)
    assert torch.isfinite(out).all()
    out[0, 0].sum().backward()
    assert torch.isfinite(x_BTD.grad).all() and not x_BTD.grad[0, 1:].any()


def copied(ours: TransformerLayer, theirs: Any) -> None:
    """Copy our weights to PyTorch's layer."""
    pairs = [
        (theirs.self_attn.in_proj_weight, ours.self_attn.qkv_proj.weight),
        (theirs.self_attn.in_proj_bias, ours.self_attn.qkv_proj.bias),
        (theirs.self_attn.out_proj.weight, ours.self_attn.o_proj.weight),
        (theirs.self_attn.out_proj.bias, ours.self_attn.o_proj.bias),
        (theirs.linear1.weight, ours.mlp.up_proj.weight),
        (theirs.linear1.bias, ours.mlp.up_proj.bias),
        (theirs.linear2.weight, ours.mlp.down_proj.weight),
        (theirs.linear2.bias, ours.mlp.down_proj.bias),
    ]
    norms = [ours.input_layernorm, ours.post_attention_layernorm]
    if hasattr(ours, "cross_attn"):
        cross, other = ours.cross_attn, theirs.multihead_attn
        pairs += [
            (other.in_proj_weight, torch.cat((cross.q_proj.weight, cross.kv_proj.weight))),
            (other.in_proj_bias, torch.cat((cross.q_proj.bias, cross.kv_proj.bias))),
            (other.out_proj.weight, cross.o_proj.weight),
            (other.out_proj.bias, cross.o_proj.bias),
        ]
        norms.insert(1, ours.cross_attention_layernorm)
    for number, norm in enumerate(norms, start=1):
        their = getattr(theirs, f"norm{number}")
        pairs += [(their.weight, norm.weight), (their.bias, norm.bias)]
    with torch.no_grad():
        for target, value in pairs:
            target.copy_(value)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_a_layer_equals_torch(cross: bool, norm_first: bool) -> None:
    torch.manual_seed(3)
    ours = TransformerLayer(encoder(), norm_first, cross=cross)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, 0.5 if parameter.dim() == 1 else 0.0, 0.3)
    kind = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    theirs = kind(32, 4, 48, dropout=0.0, activation="relu", batch_first=True, norm_first=norm_first)
    copied(ours, theirs)
    x_BTD, source_BSD, lengths = drawn(2, 11, 32), drawn(2, 7, 32, seed=1), torch.tensor([7, 3])
    inputs = [[tensor.clone().requires_grad_() for tensor in (x_BTD, source_BSD)] for _ in range(2)]
    if cross:
        out = ours(inputs[0][0], Mask(True), source=Source(inputs[0][1], Mask(False, lengths_B=lengths)))
        padding = torch.arange(7) >= lengths[:, None]
        future = nn.Transformer.generate_square_subsequent_mask(11)
        expected = theirs(*inputs[1], tgt_mask=future, tgt_is_causal=True, memory_key_padding_mask=padding)
    else:
        out, expected = ours(inputs[0][0], Mask(False)), theirs(inputs[1][0])
    same(out, expected)
    upstream = drawn(2, 11, 32, seed=2)
    (out * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for one, other in zip(*inputs, strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours.mlp.up_proj.weight.grad, theirs.linear1.weight.grad, atol=1e-3, rtol=1e-3)
    packed = theirs.self_attn.in_proj_weight.grad
    torch.testing.assert_close(ours.self_attn.qkv_proj.weight.grad, packed, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("heads", [1, 4, 6, 12, 25])
def test_slopes_equal_bloom(heads: int) -> None:
    theirs = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)
    torch.testing.assert_close(alibi_slopes(heads), theirs.view(heads, 3)[:, 1])


@pytest.mark.parametrize(
    ("heads", "slopes", "sides"),
    [(1, [2**-8], [0]), (3, [2**-4, 2**-4, 2**-2], [-1, 1, 0]), (4, [2**-2, 2**-2, 2**-6, 2**-6], [-1, 1, -1, 1])],
)
def test_alibi_both_ways_has_heads_for_each_side(heads: int, slopes: list[float], sides: list[int]) -> None:
    assert alibi_slopes(heads, causal=False).tolist() == slopes and alibi_sides(heads).tolist() == sides


def test_sinusoids_equal_the_paper() -> None:
    table = sinusoidal(torch.tensor([0, 1, 17, 1000]), 12)
    for row, position in enumerate((0, 1, 17, 1000)):
        for i in range(6):
            angle = position / 10_000 ** (2 * i / 12)
            assert table[row, 2 * i] == pytest.approx(math.sin(angle), abs=1e-4)
            assert table[row, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-4)


def test_pooling_leaves_padding_out() -> None:
    x_BSD, lengths = drawn(3, 8, 4), [8, 4, 1]
    means = pooled(x_BSD, 3, torch.tensor(lengths))
    assert means.shape == (3, 3, 4)
    for row, length in enumerate(lengths):
        for piece in range(-(-length // 3)):
            same(means[row, piece], x_BSD[row, 3 * piece : min(3 * piece + 3, length)].mean(0))
    same(pooled(x_BSD, 3), pooled(x_BSD, 3, torch.tensor([8, 8, 8])))


def test_attention_hooks_receive_the_weights_of_every_layer() -> None:
    model = EncoderForTokens(encoder(), 61)
    init_weights(model, 0)
    collected: list[torch.Tensor] = []
    for layer in model.model.blocks:
        layer.self_attn.attention_hook = collected.append
    model(torch.arange(18).view(2, 9), lengths=torch.tensor([9, 4]))
    assert [weights.shape for weights in collected] == [(2, 4, 9, 9)] * 2
    assert not any(weights[1, :, :, 4:].any() for weights in collected)
    assert all(weights[1, :, :, :4].all() for weights in collected)


def test_the_cost_of_a_window_grows_linearly() -> None:
    """Twice the length is twice the products; without a window four times."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(length: int, mask: Mask) -> int:
        layer = SelfAttention(gpt())
        with FlopCounterMode(display=False) as counter:
            layer(drawn(1, length, 32), mask).sum().backward()
        return counter.get_total_flops() - 6 * length * 4 * 32 * 32

    assert flops(2048, Mask(True, 64)) / flops(1024, Mask(True, 64)) == pytest.approx(2, rel=0.1)
    assert flops(2048, Mask(True, 64, alibi_slopes(4))) < flops(2048, Mask(True)) / 5
