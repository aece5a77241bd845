"""The DeepSeek model: checkpointing and packing change nothing, causality, initialization, and AutoEP's needs."""

import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import FlopCounterMode

from configs.schema.models.deepseek import AdaptiveSection, DeepseekSection, NoiseSection
from tests.support.training.shapes import SHAPES, VOCAB, small
from training.engine.expert_parallel import local_experts
from training.export.weights import load_weights, released_weights
from training.layers import activation_checkpointing
from training.layers.cpu.matmul import ONEDNN_PRODUCT
from training.layers.router import BALANCE_LOSSES
from training.models.deepseek import DeepseekForCausalLM, init_weights


def build(config: DeepseekSection, seed: int = 0) -> DeepseekForCausalLM:
    model = DeepseekForCausalLM(config, VOCAB)
    init_weights(model, seed)
    return model


def tokens(batch: int = 2, length: int = 40, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_position_sees_only_the_past() -> None:
    model = build(SHAPES["groups"]).eval()
    ids = tokens(1, 20)
    changed = ids.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % VOCAB
    torch.testing.assert_close(model(ids)[0, :12], model(changed)[0, :12])
    assert not torch.allclose(model(ids)[0, 12:], model(changed)[0, 12:])


#: Configurations with every kind of gate, and with multi-token prediction.
KINDS = {
    "groups": SHAPES["groups"],
    "v2": small(scoring_func="softmax", topk_method="greedy", norm_topk_prob=False, q_lora_rank=24),
    "adaptive": small(num_experts_per_tok=4, adaptive_experts=AdaptiveSection(mass=0.4)),
    "noisy": small(router_noise=NoiseSection(kind="learned"), q_lora_rank=24),
    "mtp": small(num_nextn_predict_layers=2),
    "odd_widths": SHAPES["odd_widths"],
}
BALANCE = tuple(BALANCE_LOSSES)


def losses(model: DeepseekForCausalLM, starts: torch.Tensor | None = None) -> torch.Tensor:
    """Return the sum of all the model's losses on the same tokens, through which every parameter has a gradient."""
    ids = tokens()
    targets = [ids.roll(-distance, 1) for distance in range(1, 2 + len(model.prediction_layers))]
    torch.manual_seed(7)
    sums = model(ids, targets, starts, BALANCE)
    assert set(sums) == {"cross_entropy", *BALANCE} | {f"mtp_{k}" for k in range(1, len(targets))}
    return torch.stack(list(sums.values())).sum() / ids.numel()


def same_gradients(one: DeepseekForCausalLM, other: DeepseekForCausalLM, tolerance: float = 0.0) -> None:
    for (key, parameter), counterpart in zip(one.named_parameters(), other.parameters(), strict=True):
        assert parameter.grad is not None and counterpart.grad is not None, key
        torch.testing.assert_close(parameter.grad, counterpart.grad, msg=key, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("name", KINDS)
def test_checkpointing_changes_nothing(name: str, mode: Any) -> None:
    """Results are exactly equal, with noise too, and every parameter has a gradient."""
    plain, kept = build(KINDS[name]), build(KINDS[name])
    kept.set_activation_checkpointing(mode)
    values = [losses(model) for model in (plain, kept)]
    assert torch.equal(*values)
    for value in values:
        value.backward()
    same_gradients(plain, kept)
    counts = [[router.pop_counts() for router in model.routers.values()] for model in (plain, kept)]
    assert all(torch.equal(one, other) for one, other in zip(*counts, strict=True))


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("name", ["groups", "adaptive"])
def test_recomputation_reuses_the_routing_of_the_forward_pass(name: str, mode: Any) -> None:
    plain, kept = build(KINDS[name]), build(KINDS[name])
    kept.set_activation_checkpointing(mode)
    for model in (plain, kept):
        loss = losses(model)
        gate = model.model.layers[1].mlp.gate
        gate.e_score_correction_bias.copy_(torch.arange(8.0))  # a choice made now would be another one
        loss.backward()
    same_gradients(plain, kept)


def test_checkpointing_recomputes_in_training_only() -> None:
    model = build(small())
    calls = []
    model.model.layers[1].mlp.gate.register_forward_hook(lambda *_: calls.append(1))
    seen = []
    for mode, training in (("full", True), ("selective", True), ("full", False), ("none", True)):
        model.train(training).set_activation_checkpointing(mode)  # type: ignore[arg-type]
        calls.clear()
        model(tokens()).mean().backward()
        seen.append(len(calls))
    assert seen == [2, 2, 1, 1]


def test_selective_checkpointing_keeps_latents_and_recomputes_no_narrow_product() -> None:
    """Counts matrix products of a training step: selective repeats fewer than full, and none of the latents."""
    products, of_latents = {}, {}
    for mode in ("none", "selective", "full"):
        model = build(small(q_lora_rank=20))
        model.set_activation_checkpointing(mode)  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as counter, _ProductsByWidth() as widths:
            losses(model).backward()
        products[mode] = counter.get_total_flops()
        # The latent of queries, and that of keys and values with the rotated key.
        of_latents[mode] = widths.counts[20], widths.counts[16 + 8]
    assert products["none"] < products["selective"] < products["full"]
    assert of_latents["selective"] == of_latents["none"] < of_latents["full"]


class _ProductsByWidth(TorchDispatchMode):
    """Counts matrix products by the width of their result."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, operation: Any, _types: Any, inputs: Any = (), more: Any = None) -> Any:
        out = operation(*inputs, **(more or {}))
        if operation in (torch.ops.aten.mm.default, ONEDNN_PRODUCT):
            self.counts[out.shape[-1]] += 1
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selective_checkpointing_keeps_nothing_of_narrow_experts(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products narrower than the residual stream are kept, except those of experts: more experts keep no more."""
    original, kept = activation_checkpointing._selective_policy, []

    def spied(*arguments: Any, **more: Any) -> Any:
        decided = original(*arguments, **more)
        kept.append(decided is CheckpointPolicy.MUST_SAVE)
        return decided

    monkeypatch.setattr(activation_checkpointing, "_selective_policy", spied)
    counts = []
    for experts in (2, 8):
        model = build(small(moe_intermediate_size=8, n_routed_experts=experts)).to(dtype)
        model.set_activation_checkpointing("selective")
        kept.clear()
        losses(model)
        counts.append(sum(kept))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", ["groups", "mtp", "v2"])
def test_packed_documents_equal_separate_samples(name: str) -> None:
    """Logits, losses and gradients of documents in one sample are those of each run by itself."""
    together, alone = build(KINDS[name]), build(KINDS[name])
    depth = len(together.prediction_layers)
    ids = tokens(2, 40)
    bounds = [(0, 0, 7), (0, 7, 8), (0, 8, 40), (1, 0, 40)]
    starts = torch.tensor([row * 40 + first for row, first, _ in bounds] + [80], dtype=torch.int32)
    targets = [torch.full_like(ids, -100) for _ in range(1 + depth)]
    pieces = []
    for row, first, last in bounds:
        document = ids[row : row + 1, first:last]
        document_labels = [torch.full_like(document, -100) for _ in targets]
        for distance, labels in enumerate(document_labels, start=1):
            labels[:, :-distance] = document[:, distance:]
            targets[distance - 1][row, first:last] = labels[0]
        pieces.append((document, document_labels))
    logits = together(ids, starts=starts)
    for (row, first, last), (document, _) in zip(bounds, pieces, strict=True):
        torch.testing.assert_close(logits[row, first:last], alone(document)[0], atol=1e-5, rtol=1e-4)
    sum(together(ids, targets, starts).values()).backward()
    sum(value for document, labels in pieces for value in alone(document, labels).values()).backward()
    for (key, one), other in zip(together.named_parameters(), alone.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, key
        assert (one.grad - other.grad).norm() <= 1e-4 * other.grad.norm() + 1e-6, key


def test_positions_restart_in_every_document() -> None:
    """A document far into a sample gives exactly the same as at the beginning."""
    model = build(SHAPES["yarn"])
    ids = tokens(1, 128)
    twice = torch.cat((ids, ids), dim=1)
    starts = torch.tensor([0, 128, 256], dtype=torch.int32)
    logits = model(twice, starts=starts)
    assert torch.equal(logits[0, :128], logits[0, 128:])


@pytest.mark.skipif(
    " " in torch.__file__ or not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch compiles for CPUs with a C++ compiler, and from no path with a space",
)
def test_compiled_regions_equal_eager_without_breaks_or_recompilation() -> None:
    eager, compiled = build(KINDS["mtp"]), build(KINDS["mtp"])
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled.compile_regions()
    for step in range(4):
        for model in (eager, compiled):
            model.zero_grad()
            losses(model).backward()
        same_gradients(eager, compiled, tolerance=1e-5)
        if step == 0:
            graphs = counters["stats"]["unique_graphs"]
            assert graphs >= 3
    assert counters["stats"]["unique_graphs"] == graphs, "recompiled in steady state"
    assert not counters["graph_break"]


def test_multi_token_prediction_sees_only_what_it_may() -> None:
    """Depth k at position t depends on tokens up to t + k and no further."""
    model = build(KINDS["mtp"]).eval()
    ids = tokens(1, 20)
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % VOCAB
    outputs = []
    for text in (ids, changed):
        hidden, depths = model.hidden(text), []
        rope = model.model.rotary_table(torch.arange(20))
        for depth, layer in enumerate(model.prediction_layers, start=1):
            hidden = layer.predict(hidden, model.model.embed_tokens(text.roll(-depth, 1)), rope)
            depths.append(hidden)
        outputs.append(depths)
    for depth, (one, other) in enumerate(zip(*outputs, strict=True), start=1):
        torch.testing.assert_close(one[0, : 12 - depth], other[0, : 12 - depth])
        assert not torch.allclose(one[0, 12 - depth], other[0, 12 - depth])


def test_initialization_follows_its_table() -> None:
    """Standard deviations on a built model of every kind of parameter, at V3's 0.006."""
    config = small(
        hidden_size=256,
        moe_intermediate_size=64,
        intermediate_size=512,
        q_lora_rank=96,
        kv_lora_rank=96,
        num_nextn_predict_layers=1,
        attention_bias=True,
        mlp_bias=True,
        router_noise=NoiseSection(kind="learned"),
        initializer_range=0.006,
    )
    model = build(config)
    kinds = set()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        kinds.add(name.rsplit(".", 1)[1] if "proj" not in name else name.split(".")[-2])
        if value.dim() > 1:
            far = 5 / (2 * value.numel()) ** 0.5  # five standard errors
            assert abs(value.std().item() / 0.006 - 1) < far, name
            assert abs(value.mean().item()) < 5 * 0.006 / value.numel() ** 0.5, name
        else:
            assert torch.all(value == (0.0 if "bias" in name else 1.0)), name
    assert {"eh_proj", "kv_a_proj_with_mqa", "e_score_correction_bias", "weight"} <= kinds


def test_weights_depend_only_on_seed_and_name() -> None:
    one, same, other = build(small(), 7).state_dict(), build(small(), 7).state_dict(), build(small(), 8).state_dict()
    deeper = build(small(num_hidden_layers=3), 7).state_dict()
    for key, value in one.items():
        assert torch.equal(value, same[key]) and torch.equal(value, deeper[key])
        drawn = value.dim() > 1
        assert torch.equal(value, other[key]) is not drawn
        if drawn:
            assert abs(value.std().item() / 0.1 - 1) < 0.25 and abs(value.mean().item()) < 0.02
        else:
            assert torch.all(value == (0.0 if "bias" in key else 1.0))


def test_bf16_weights_are_the_rounded_fp32_ones() -> None:
    narrow = DeepseekForCausalLM(small(), VOCAB).to(torch.bfloat16)
    init_weights(narrow, 0)
    for value, expected in zip(narrow.parameters(), build(small()).parameters(), strict=True):
        assert torch.equal(value, expected.to(torch.bfloat16))


@torch.no_grad()
def test_each_rank_initializes_its_experts_like_one_process() -> None:
    whole, parts = build(small()), [DeepseekForCausalLM(small(), VOCAB) for _ in range(2)]
    released = list(released_weights(whole))
    for fill in (lambda m, e: init_weights(m, 0, e), lambda m, e: load_weights(m, released, e)):
        for rank, part in enumerate(parts):
            for tensor in part.state_dict().values():
                tensor.fill_(float("nan"))
            experts = local_experts(rank, small().n_routed_experts, 2)
            fill(part, experts)
            for (name, tensor), expected in zip(part.state_dict().items(), whole.state_dict().values(), strict=True):
                if tensor.dim() < 3:
                    assert torch.equal(tensor, expected), name
                    continue
                assert torch.equal(tensor[experts.start : experts.stop], expected[experts.start : experts.stop]), name
                assert tensor.isnan().any(dim=(1, 2)).sum() == len(tensor) - len(experts), name


def test_experts_of_other_ranks_take_no_memory() -> None:
    """Compare the resident memory of 4 experts and of all 32 (201 MB). DeepSeek-V3's experts would fill a node."""
    # In a separate process: memory that earlier tests released would be reused without growth.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        grown = pool.submit(_grown_by_models, (range(4), range(32))).result()
    assert grown[0] < grown[1] / 2


def _grown_by_models(owned: Sequence[range]) -> list[int]:
    shape = small(hidden_size=256, moe_intermediate_size=2048, n_routed_experts=32)
    grown = []
    for experts in owned:
        before = psutil.Process().memory_info().rss
        model = DeepseekForCausalLM(shape, VOCAB)
        init_weights(model, 0, experts)
        grown.append(psutil.Process().memory_info().rss - before)
        del model
    return grown


@pytest.mark.parametrize("name", ["groups", "yarn", "odd_widths"])
def test_bf16_is_close_to_fp32(name: str) -> None:
    model = build(SHAPES[name])
    exact = model(tokens())
    rounded = model.to(torch.bfloat16)(tokens())
    assert rounded.dtype == torch.bfloat16
    # A near-tie may route one token elsewhere, so the bound is on the mean and not on the largest difference.
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_meta_device_then_materialized() -> None:
    with torch.device("meta"):
        model = DeepseekForCausalLM(small(), VOCAB)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    init_weights(model, 0)
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert torch.isfinite(model(tokens()).float()).all()
