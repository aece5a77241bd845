"""The gate's choice, and the experts' two ways of computing."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from configs.schema.model import ModelSection
from tests.training.shapes import small
from training.layers import moe
from training.layers.moe import Gate, MixtureOfExperts, grouped_experts, looped_experts


def gate_with(config: ModelSection, seed: int = 0) -> Gate:
    gate = Gate(config)
    torch.nn.init.normal_(gate.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return gate


def inputs(rows: int = 50, width: int = 32) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(9))


def test_gate_returns_weights_indices_and_counts() -> None:
    gate = gate_with(small(num_experts_per_tok=3, routed_scaling_factor=2.5))
    weights, selected, counts = gate(inputs())
    assert weights.shape == selected.shape == (50, 3) and counts.dtype == torch.int32
    assert torch.equal(counts, selected.flatten().bincount(minlength=8).int())
    torch.testing.assert_close(weights.sum(-1), torch.full((50,), 2.5))
    assert all(len(set(row)) == 3 for row in selected.tolist())


def test_bias_steers_the_choice_and_enters_no_weight() -> None:
    gate = gate_with(small(norm_topk_prob=False, routed_scaling_factor=1.0))
    gate.e_score_correction_bias[6] = 10.0
    weights, selected, counts = gate(inputs())
    assert counts[6] == 50
    scores = (inputs() @ gate.weight.T).sigmoid()
    torch.testing.assert_close(weights, scores.gather(1, selected))


def test_negative_scores_do_not_leak_out_of_the_kept_groups() -> None:
    # All biased scores of the kept group are negative: a mask of zeros would prefer the dropped groups' experts.
    gate = gate_with(small(n_group=4, topk_group=1))
    gate.e_score_correction_bias.fill_(-5.0)
    gate.e_score_correction_bias[2:4] = -2.0
    _, selected, counts = gate(inputs())
    assert counts.tolist() == [0, 0, 50, 50, 0, 0, 0, 0]
    assert set(selected.flatten().tolist()) == {2, 3}


def test_groups_are_scored_by_their_best_two() -> None:
    gate = gate_with(small(n_group=2, topk_group=1))
    scores = torch.tensor([[0.9, 0.1, 0.1, 0.1, 0.6, 0.6, 0.0, 0.0]])
    assert set(gate.select(scores)[0].tolist()) == {4, 5}


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16().double()])
def test_bias_stays_exact_and_fp32_when_the_model_is_cast(cast: Callable[[Gate], Gate]) -> None:
    gate = gate_with(small())
    gate.e_score_correction_bias.fill_(0.1001)
    bias = cast(gate).e_score_correction_bias
    assert bias.dtype == torch.float32 and torch.equal(bias, torch.full((8,), 0.1001))
    assert "e_score_correction_bias" in gate.state_dict()


def test_bf16_gate_decides_in_fp32() -> None:
    gate = gate_with(small()).to(torch.bfloat16)
    x = inputs().to(torch.bfloat16)
    weights, selected, _ = gate(x)
    wide = gate_with(small())
    wide.weight.data = gate.weight.detach().float()
    expected, expected_selected, _ = wide(x.float())
    assert weights.dtype == torch.float32
    assert torch.equal(weights, expected) and torch.equal(selected, expected_selected)


Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def outputs_and_gradients(run: Run, counts: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    experts, hidden, width = len(counts), 32, 16
    leaves = [
        torch.randn(*shape, generator=generator).mul(scale).to(dtype).requires_grad_()
        for shape, scale in (
            ((sum(counts), hidden), 1),
            ((experts, 2 * width, hidden), 0.2),
            ((experts, hidden, width), 0.2),
        )
    ]
    leaves.append(torch.rand(sum(counts), generator=generator).requires_grad_())
    out = run(leaves[0], torch.tensor(counts, dtype=torch.int32), leaves[3], leaves[1], leaves[2])
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    gradients = [leaf.grad for leaf in leaves]
    assert all(g is not None for g in gradients)
    return [out.detach(), *(g for g in gradients if g is not None)]


@pytest.mark.parametrize("counts", [[10, 20, 5, 7], [0, 30, 0, 1], [0, 0, 0, 9], [9, 0, 0, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_equals_looped(counts: list[int], dtype: torch.dtype) -> None:
    looped = outputs_and_gradients(looped_experts, counts, dtype)
    grouped = outputs_and_gradients(grouped_experts, counts, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(looped, grouped, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    for empty in (e for e, count in enumerate(counts) if count == 0):
        assert not any(g[empty].any() for results in (looped, grouped) for g in results[2:4])


@pytest.mark.parametrize(
    ("width", "dtype", "fits"),
    [(16, torch.bfloat16, True), (12, torch.bfloat16, False), (12, torch.float32, True), (13, torch.float32, False)],
)
def test_the_rule_knows_what_the_grouped_product_takes(width: int, dtype: torch.dtype, fits: bool) -> None:
    x, down, gate_up = (
        torch.ones(6, 32, dtype=dtype),
        torch.ones(2, 32, width, dtype=dtype),
        torch.ones(2, 2 * width, 32),
    )
    assert moe.fits_grouped_mm(x, down) is fits
    counts = torch.tensor([2, 4], dtype=torch.int32)
    if fits:
        grouped_experts(x, counts, torch.ones(6), gate_up.to(dtype), down)
    else:
        with pytest.raises(RuntimeError, match="16 bytes"):
            grouped_experts(x, counts, torch.ones(6), gate_up.to(dtype), down)


def test_layer_is_the_weighted_sum_it_says() -> None:
    config = small(n_shared_experts=0, n_group=2, topk_group=1)
    layer = MixtureOfExperts(config)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.dim()))
    x = inputs(12).view(2, 6, 32)
    weights, selected, _ = layer.gate(x.flatten(0, 1))
    for row, y in enumerate(layer(x).flatten(0, 1)):
        expected = torch.zeros(32)
        for weight, expert in zip(weights[row], selected[row], strict=True):
            gate, up = (layer.experts.gate_up_proj[expert] @ x.flatten(0, 1)[row]).chunk(2)
            expected += weight * (layer.experts.down_proj[expert] @ (F.silu(gate) * up))
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
