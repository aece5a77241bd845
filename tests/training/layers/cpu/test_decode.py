"""The C code for few rows gives the same as PyTorch, and PyTorch is used everywhere else."""

import ctypes
import shutil
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from artefacts import c_library
from tests.support.training.plain_experts import looped_experts
from tests.support.training.shapes import SHAPES, VOCAB
from training.layers.cpu import decode, kernels
from training.layers.linear import linear
from training.layers.router import Routing
from training.models.deepseek import DeepseekForCausalLM, init_weights

compiles = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
DTYPES = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 2e-2)}
#: Around the widths that the code takes at a time, and far from them.
WIDTHS = [1, 15, 16, 17, 32, 47, 100, 256]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert actual.dtype != torch.float64
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)


@compiles
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("precision", DTYPES)
def test_linear(precision: str, width: int) -> None:
    dtype, tolerance = DTYPES[precision]
    for rows in (1, 2, 3, 5, 8, 15, 16):
        # The larger is beyond what one thread takes.
        for outputs in (1, 3, 40_000 // width):
            x, weight = drawn(rows, width, dtype=dtype), drawn(outputs, width, dtype=dtype, seed=1)
            bias = drawn(outputs, dtype=dtype, seed=2)
            expected = F.linear(x.double(), weight.double())
            scaled = tolerance * width**0.5
            close(decode.linear(x, weight), expected, scaled)
            close(decode.linear(x, weight, bias), expected + bias.double(), scaled)


@compiles
def test_linear_takes_any_leading_dimensions_and_strides() -> None:
    x, weight = drawn(3, 40, 4, dtype=torch.float32), drawn(7, 40, dtype=torch.float32)
    close(linear(x.transpose(1, 2), weight), F.linear(x.transpose(1, 2), weight), 1e-5)
    close(linear(x[0, :, 0], weight), F.linear(x[0, :, 0], weight), 1e-5)
    transposed = drawn(40, 7, dtype=torch.float32)
    close(linear(x[0].t(), transposed.t()), F.linear(x[0].t(), transposed.t()), 1e-5)


@compiles
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("precision", DTYPES)
def test_rms_norm(precision: str, width: int) -> None:
    dtype, tolerance = DTYPES[precision]
    x, weight = drawn(2, 3, width, dtype=dtype), drawn(width, dtype=dtype, seed=1)
    expected = F.rms_norm(x.double(), (width,), weight.double(), 1e-3)
    close(decode.rms_norm(x, weight, 1e-3), expected, tolerance)


@compiles
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("tokens", "top", "experts"), [(1, 1, 1), (1, 4, 8), (8, 4, 24), (16, 2, 3), (5, 8, 8)])
def test_experts(precision: str, tokens: int, top: int, experts: int) -> None:
    dtype, tolerance = DTYPES[precision]
    x = drawn(tokens, 40, dtype=dtype)
    gate_up, down = drawn(experts, 2 * 24, 40, dtype=dtype, seed=1) / 6, drawn(experts, 40, 24, dtype=dtype, seed=2) / 5
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(3))
    weights, selected = scores.topk(top)
    weights[0, 0] = 0
    out = decode.experts(x, weights, selected, gate_up, down)
    assert out is not None
    assert out.dtype == dtype
    expected = looped_experts(x.float(), Routing(weights, selected), gate_up.float(), down.float())
    close(out, expected, 2 * tolerance)


@compiles
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("visible_lengths", [[[1]], [[9], [4]], [[3, 4, 5], [9, 10, 11], [1, 2, 3]]])
def test_latent_attention(precision: str, visible_lengths: list[list[int]]) -> None:
    dtype, tolerance = DTYPES[precision]
    heads, nope, rope, value, latent = 3, 20, 6, 18, 33
    visible_lengths_BT = torch.tensor(visible_lengths)
    samples, length = visible_lengths_BT.shape
    q = drawn(samples, heads, length, nope + rope, dtype=dtype)
    entries = drawn(samples, 30, latent + rope, dtype=dtype, seed=1)[:, : visible_lengths_BT.max()]
    expand = drawn(heads, nope + value, latent, dtype=dtype, seed=2) / 6
    out = decode.latent_attention(q, entries, expand, visible_lengths_BT, 0.3)
    assert out is not None
    latents, rotated = entries.double().split((latent, rope), dim=-1)
    keys, values = torch.einsum("blc,nec->bnle", latents, expand.double()).split((nope, value), dim=-1)
    keys = torch.cat((keys, rotated[:, None].expand(-1, heads, -1, -1)), dim=-1)
    masked = torch.arange(entries.shape[1]) >= visible_lengths_BT[:, None, :, None]
    scores = (q.double() @ keys.transpose(2, 3) * 0.3).masked_fill(masked, float("-inf"))
    close(out, (scores.softmax(-1) @ values).transpose(1, 2), 4 * tolerance)


def test_more_rows_gradients_and_other_dtypes_use_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected() -> ctypes.CDLL:
        raise AssertionError("the C code was asked for")

    monkeypatch.setattr(kernels, "_code", unexpected)
    weight = drawn(4, 8, dtype=torch.float32)
    decode.linear(drawn(17, 8, dtype=torch.float32), weight)
    decode.linear(drawn(1, 8, dtype=torch.float64), weight.double())
    decode.rms_norm(drawn(17, 8, dtype=torch.float32), weight[0], 1e-6)
    with torch.enable_grad():
        decode.linear(drawn(1, 8, dtype=torch.float32), weight)
    assert decode.experts(drawn(17, 8, dtype=torch.float32), *[weight] * 4) is None
    with pytest.raises(AssertionError, match="was asked for"):
        decode.linear(drawn(16, 8, dtype=torch.float32), weight)


def test_unsupported_inputs_return_none() -> None:
    fp32, bf16 = torch.float32, torch.bfloat16
    x, weight = drawn(2, 8, dtype=fp32), drawn(4, 8, dtype=fp32)
    gate_up, down = torch.randn(3, 8, 8), torch.randn(3, 8, 4)
    weights, selected = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    assert decode.linear(x, drawn(4, 9, dtype=fp32)) is None
    assert decode.linear(x, weight, drawn(8, dtype=fp32)[::2]) is None
    assert decode.linear(x, weight, drawn(4, dtype=bf16)) is None
    assert decode.linear(x[:0], weight) is None
    assert decode.linear(x[:, :0], weight[:, :0]) is None
    assert decode.rms_norm(x, weight[0, :4], 1e-6) is None
    assert decode.experts(x, weights, selected, gate_up, down.transpose(1, 2).contiguous().transpose(1, 2)) is None
    assert decode.experts(x, weights, selected, gate_up, down.to(bf16)) is None
    assert decode.experts(x, weights.to(bf16), selected, gate_up, down) is None
    assert decode.experts(x, weights, selected.int(), gate_up, down) is None
    q, entries, visible_lengths = x[None, :, None], torch.randn(1, 5, 10), torch.tensor([[2]])
    assert decode.latent_attention(q, entries.to(bf16), torch.randn(2, 9, 6), visible_lengths, 1) is None
    assert decode.latent_attention(q, entries[..., ::2], torch.randn(2, 9, 3), visible_lengths, 1) is None
    with torch.autocast("cpu", bf16):
        assert decode.linear(x, weight) is None
    with FakeTensorMode() as mode:
        assert decode.linear(mode.from_tensor(x), mode.from_tensor(weight)) is None


def test_without_a_compiler_decoding_is_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """One line says so."""

    def decoded() -> torch.Tensor:
        model = DeepseekForCausalLM(SHAPES["groups"], VOCAB)
        init_weights(model, 1)
        cache, states = model.eval().new_cache(2, 12), []
        for piece in torch.arange(24).view(2, 12).split([4] + [1] * 8, dim=1):
            states.append(model.hidden(piece, cache=cache))
            cache.commit([length + piece.shape[1] for length in cache.lengths])
        return torch.cat(states, dim=1)

    expected = decoded()
    kernels._code.cache_clear()
    c_library.library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv(c_library._REPORTED, "")
    try:
        torch.testing.assert_close(decoded(), expected, atol=1e-5, rtol=1e-4)
        errors = capsys.readouterr().err.splitlines()
        assert errors == ["kernels.c is not compiled (no C compiler (no-such-compiler)): slower without it"]
    finally:
        kernels._code.cache_clear()
        c_library.library.cache_clear()


@compiles
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("precision", DTYPES)
def test_layer_norm(precision: str, width: int) -> None:
    dtype, tolerance = DTYPES[precision]
    x, weight, bias = (
        3 + drawn(7, width, dtype=dtype),
        drawn(width, dtype=dtype, seed=1),
        drawn(width, dtype=dtype, seed=2),
    )
    for shift in (None, bias):
        wide = None if shift is None else shift.double()
        expected = F.layer_norm(x.double(), (width,), weight.double(), wide, 1e-5)
        close(decode.layer_norm(x, weight, shift, 1e-5), expected, 4 * tolerance)


@compiles
@pytest.mark.parametrize("width", [1, 15, 16, 64, 100])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("sloped", [False, True])
@pytest.mark.parametrize("window", [None, 1, 7, 500])
def test_attention_to_cached_heads(precision: str, width: int, window: int | None, sloped: bool) -> None:
    """Sequences of unequal lengths in a cache with room to spare, one or several tokens of each."""
    dtype, tolerance = DTYPES[precision]
    slopes = torch.tensor([0.5, 0.1, 0.02]) if sloped else None
    storage = drawn(2, 3, 60, 2 * width, dtype=dtype)
    entries = storage[:, :, :50]
    for tokens in (1, 4):
        q = drawn(2, 3, tokens, width, dtype=dtype, seed=tokens)
        visible_lengths = torch.tensor([[50 - tokens], [20]]) + torch.arange(1, tokens + 1)
        out = decode.attention(q, entries, visible_lengths, 0.3, window, slopes)
        k, v = entries.double().chunk(2, dim=-1)
        ahead = torch.arange(50) - (visible_lengths[..., None] - 1)
        masked = (ahead > 0) | (ahead <= -(window or 1000))
        scores = q.double() @ k.transpose(2, 3) * 0.3
        if slopes is not None:
            scores = scores + slopes.double()[:, None, None] * ahead[:, None]
        expected = scores.masked_fill(masked[:, None], float("-inf")).softmax(-1) @ v
        close(out, expected.transpose(1, 2), tolerance)


@compiles
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("tanh", [False, True])
def test_gelu(precision: str, width: int, tanh: bool) -> None:
    dtype, tolerance = DTYPES[precision]
    x = 3 * drawn(9, width, dtype=dtype)
    close(
        decode.gelu(x, tanh),
        F.gelu(x.double(), approximate="tanh" if tanh else "none"),
        tolerance if dtype == torch.bfloat16 else 1e-6,
    )


@compiles
def test_gelu_is_exact_everywhere() -> None:
    """The error is at most a few units in the last place of fp32, for large inputs too."""
    x = torch.linspace(-20, 20, 200_001)[:, None].expand(-1, 1)
    out = torch.cat([decode.gelu(piece) for piece in x.split(16)])
    assert (out.double() - F.gelu(x.double())).abs().max() < 5e-7
    far = torch.tensor([[-1e8, 1e8, 0.0, float("nan")]])
    torch.testing.assert_close(decode.gelu(far), F.gelu(far), equal_nan=True)
