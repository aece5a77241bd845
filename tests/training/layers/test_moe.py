"""Every kind of router and every implementation of the experts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.models.deepseek import AdaptiveSection, DeepseekSection, NoiseSection
from tests.support.training.plain_experts import looped_experts
from tests.support.training.shapes import small
from training.layers.cpu.experts import routed_experts
from training.layers.moe import Gate, MixtureOfExperts, grouped_experts
from training.layers.router import BALANCE_LOSSES, Router, Routing, tokens_per_expert

SOFTMAX = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
V2 = {**SOFTMAX, "topk_method": "group_limited_greedy"}


def gate_with(config: DeepseekSection, seed: int = 0) -> Gate:
    gate = Gate(config, Router(config))
    torch.nn.init.normal_(gate.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return gate


def inputs(rows: int = 50, width: int = 32) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(9))


def test_gate_returns_weights_indices_and_counts() -> None:
    gate = gate_with(small(num_experts_per_tok=3, routed_scaling_factor=2.5))
    weights, selected = gate(inputs())
    counts = gate.router.slots_per_expert(selected)
    assert weights.shape == selected.shape == (50, 3) and counts.dtype == torch.int32
    assert torch.equal(counts, selected.flatten().bincount(minlength=8).int())
    torch.testing.assert_close(weights.sum(-1), torch.full((50,), 2.5))
    assert all(len(set(row)) == 3 for row in selected.tolist())


def test_bias_affects_the_choice_but_no_weight() -> None:
    gate = gate_with(small(norm_topk_prob=False, routed_scaling_factor=1.0))
    gate.e_score_correction_bias[6] = 10.0
    weights, selected = gate(inputs())
    assert (selected == 6).sum() == 50
    scores = (inputs() @ gate.weight.T).sigmoid()
    torch.testing.assert_close(weights, scores.gather(1, selected))


def test_negative_scores_do_not_leak_out_of_the_kept_groups() -> None:
    # All biased scores of the kept group are negative: a mask of zeros would prefer the dropped groups' experts.
    gate = gate_with(small(n_group=4, topk_group=1))
    gate.e_score_correction_bias.fill_(-5.0)
    gate.e_score_correction_bias[2:4] = -2.0
    _, selected = gate(inputs())
    assert tokens_per_expert(selected, 8).tolist() == [0, 0, 50, 50, 0, 0, 0, 0]
    assert set(selected.flatten().tolist()) == {2, 3}


def test_groups_are_scored_by_their_best_two_in_v3_and_by_their_best_in_v2() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.1, 0.1, 0.6, 0.6, 0.0, 0.0]])
    v3, v2 = (Router(small(n_group=2, topk_group=1, **kind)) for kind in ({}, V2))
    assert set(v3.select(scores)[0].tolist()) == {4, 5}
    assert 0 in v2.select(scores)[0].tolist()


def test_classic_gate_is_the_softmax_of_the_chosen_logits() -> None:
    gate = gate_with(small(num_experts_per_tok=3, routed_scaling_factor=1.0, **{**SOFTMAX, "norm_topk_prob": True}))
    weights, selected = gate(inputs())
    logits = inputs() @ gate.weight.T
    best, expected = logits.topk(3)
    assert torch.equal(selected.sort(1).values, expected.sort(1).values)
    torch.testing.assert_close(weights.sort(1).values, best.softmax(-1).sort(1).values)


def test_fixed_noise_acts_in_training_only() -> None:
    gate = gate_with(small(router_noise=NoiseSection(std=2.0)))
    plain = gate_with(small())
    torch.manual_seed(0)
    first, second = gate(inputs()).selected, gate(inputs()).selected
    assert not torch.equal(first, second)
    gate.router.eval()
    assert torch.equal(gate(inputs()).selected, plain(inputs()).selected)
    assert torch.equal(gate(inputs()).weights, plain(inputs()).weights)


def test_learned_noise_widens_with_its_projection_and_learns() -> None:
    config = small(router_noise=NoiseSection(kind="learned"), norm_topk_prob=False)
    gate = gate_with(config)
    wide, narrow = 20.0, -20.0  # softplus(20) is about 20, softplus(-20) about 0
    with torch.no_grad():
        gate.router.noise.weight.zero_()
        gate.router.noise.weight[:, 0] = 1.0
    x = inputs()
    x[:25, 0], x[25:, 0] = wide, narrow
    torch.manual_seed(0)
    first, second = gate(x).selected.sort(1).values, gate(x).selected.sort(1).values
    assert not torch.equal(first[:25], second[:25]) and torch.equal(first[25:], second[25:])
    gate(inputs()).weights.sum().backward()
    assert gate.router.noise.weight.grad is not None and gate.router.noise.weight.grad.any()


@settings(max_examples=40, deadline=None)
@given(
    mass=st.floats(0.05, 1.0), minimum=st.integers(1, 4), kind=st.sampled_from([{}, SOFTMAX]), seed=st.integers(0, 99)
)
def test_adaptive_k_is_the_smallest_set_that_reaches_the_mass(
    mass: float, minimum: int, kind: dict[str, Any], seed: int
) -> None:
    config = small(num_experts_per_tok=4, adaptive_experts=AdaptiveSection(mass=mass, minimum=minimum), **kind)
    gate = gate_with(config, seed)
    gate.router.recording = True
    weights, selected = gate(inputs())
    record = gate.router.pop_record()
    assert record is not None
    shares = gate.router.probabilities(record.logits)
    for row in range(50):
        ordered = shares[row].sort(descending=True)
        used = {int(e) for e, w in zip(selected[row], weights[row], strict=True) if w > 0}
        wanted = minimum
        while wanted < 4 and ordered.values[:wanted].sum() < mass:
            wanted += 1
        assert used == set(ordered.indices[:wanted].tolist())
    assert torch.equal(record.counts.long(), selected[weights > 0].bincount(minlength=8))


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16().double()])
def test_bias_stays_exact_and_fp32_when_the_model_is_cast(cast: Callable[[Gate], Gate]) -> None:
    gate = gate_with(small())
    gate.e_score_correction_bias.fill_(0.1001)
    bias = cast(gate).e_score_correction_bias
    assert bias.dtype == torch.float32 and torch.equal(bias, torch.full((8,), 0.1001))
    assert "e_score_correction_bias" in gate.state_dict()
    assert "e_score_correction_bias" not in gate_with(small(**SOFTMAX)).state_dict()


def test_bf16_gate_decides_in_fp32() -> None:
    gate = gate_with(small()).to(torch.bfloat16)
    x = inputs().to(torch.bfloat16)
    weights, selected = gate(x)
    wide = gate_with(small())
    wide.weight.data = gate.weight.detach().float()
    expected, expected_selected = wide(x.float())
    assert weights.dtype == torch.float32
    assert torch.equal(weights, expected) and torch.equal(selected, expected_selected)


def test_records_count_once_and_only_while_recording() -> None:
    gate = gate_with(small())
    gate(inputs())
    assert gate.router.pop_record() is None and gate.router.pop_counts() is None
    gate.router.recording = True
    for _ in range(2):
        gate(inputs())
        gate.router.pop_record()
    gate.router.recording = False
    gate(inputs())
    counts = gate.router.pop_counts()
    assert counts is not None and counts.sum() == 2 * 50 * 2
    assert gate.router.pop_counts() is None


def test_balance_losses_are_those_of_the_papers() -> None:
    """By plain loops over sequences, tokens and experts."""
    config = small(num_experts_per_tok=3)
    gate = gate_with(config)
    gate.e_score_correction_bias.copy_(torch.arange(8.0))  # affects the choice, but no loss
    gate.router.recording = True
    gate(inputs(12))
    record = gate.router.pop_record()
    assert record is not None
    gate.router.load_share = torch.arange(8.0)
    scores = (inputs(12) @ gate.weight.T).sigmoid()
    best = scores.topk(3).indices
    shares = scores / scores.sum(1, keepdim=True)
    sequence = 0.0
    for first in (0, 6):
        rows = range(first, first + 6)
        for expert in range(8):
            chosen = sum(expert in best[row].tolist() for row in rows)
            sequence += chosen * 8 / (3 * 6) * float(shares[list(rows), expert].mean())
    losses = {name: float(loss(gate.router, record, 2)) for name, loss in BALANCE_LOSSES.items()}
    assert losses["sequence_balance"] == pytest.approx(sequence, rel=1e-5)
    assert losses["load_balance"] == pytest.approx(float((shares * torch.arange(8.0)).sum()), rel=1e-5)
    z = sum(float(row.exp().sum().log()) ** 2 for row in inputs(12) @ gate.weight.T)
    assert losses["router_z"] == pytest.approx(z, rel=1e-5)


def test_balance_losses_are_one_where_the_load_is_even() -> None:
    router = Router(small())
    router.recording = True
    router(torch.zeros(8, 32), torch.zeros(8, 8), None)
    record = router.pop_record()
    assert record is not None
    assert float(BALANCE_LOSSES["sequence_balance"](router, record, 2)) == pytest.approx(2.0)
    assert float(BALANCE_LOSSES["load_balance"](router, record, 2)) == pytest.approx(8.0)


Way = Callable[[torch.Tensor, Routing, torch.Tensor, torch.Tensor], torch.Tensor]


def on_cpu(x: torch.Tensor, routing: Routing, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return routed_experts(x, routing.weights, routing.selected, gate_up, down)


def outputs_and_gradients(way: Way, allowed: list[int], unused: float, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    rows, experts, hidden, width, chosen = 31, 5, 32, 16, 2
    x, gate_up, down = (
        torch.randn(*shape, generator=generator).mul(scale).to(dtype).requires_grad_()
        for shape, scale in (((rows, hidden), 1), ((experts, 2 * width, hidden), 0.2), ((experts, hidden, width), 0.2))
    )
    order = torch.stack([torch.randperm(len(allowed), generator=generator)[:chosen] for _ in range(rows)])
    selected = torch.tensor(allowed)[order]
    weights = torch.rand(rows, chosen, generator=generator)
    weights[torch.rand(rows, chosen, generator=generator) < unused] = 0.0
    weights.requires_grad_()
    out = way(x, Routing(weights, selected), gate_up, down)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    kept = weights.grad.where(weights != 0, 0.0) if weights.grad is not None else None
    results = [out.detach(), x.grad, gate_up.grad, down.grad, kept]
    for empty in set(range(experts)) - set(allowed):
        assert gate_up.grad is not None and not gate_up.grad[empty].any(), "an idle expert's gradient is zero, not None"
    return [tensor for tensor in results if tensor is not None]


@pytest.mark.parametrize("allowed", [[0, 1, 2, 3, 4], [1, 3], [3, 4], [0, 4]])
@pytest.mark.parametrize("unused", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", [on_cpu, grouped_experts])
def test_every_implementation_equals_the_loop(way: Way, allowed: list[int], unused: float, dtype: torch.dtype) -> None:
    expected = outputs_and_gradients(looped_experts, allowed, unused, dtype)
    actual = outputs_and_gradients(way, allowed, unused, dtype)
    assert len(expected) == len(actual) == 5
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_without_gradients_give_the_same(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, gate_up, down = (torch.randn(*s, generator=generator).to(dtype) for s in ((rows, 32), (5, 32, 32), (5, 32, 16)))
    selected = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(rows)])
    routing = Routing(torch.rand(rows, 3, generator=generator), selected)
    expected = looped_experts(x.float(), routing, gate_up.float(), down.float())
    with torch.no_grad():
        out = on_cpu(x, routing, gate_up, down)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(out.float(), expected, atol=tolerance * expected.abs().mean(), rtol=tolerance)


def test_layer_is_the_weighted_sum() -> None:
    config = small(n_shared_experts=0, n_group=2, topk_group=1)
    layer = MixtureOfExperts(config, Router(config))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.dim()))
    x = inputs(12).view(2, 6, 32)
    weights, selected = layer.gate(x.flatten(0, 1))
    for row, y in enumerate(layer(x).flatten(0, 1)):
        expected = torch.zeros(32)
        for weight, expert in zip(weights[row], selected[row], strict=True):
            gate, up = (layer.experts.gate_up_proj[expert] @ x.flatten(0, 1)[row]).chunk(2)
            expected += weight * (layer.experts.down_proj[expert] @ (F.silu(gate) * up))
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
