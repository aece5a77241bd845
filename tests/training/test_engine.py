"""DeepSpeed processes over gloo give what one device without DeepSpeed gives."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load_recipe
from tests.training.engine_job import RECIPE, MadeTokens, shun_the_first_experts
from tests.training.grid import start_workers
from training.checkpoint.read import read_weights
from training.data.batch import Batch
from training.export.weights import load_weights
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.objective import Objective
from training.optimizers import build_optimizer
from training.schedules import learning_rate

pytestmark = pytest.mark.engine
CHECKOUT = Path(__file__).parents[2]

#: Every kind of gate and loss that AutoEP has not itself: V2's gate and all losses; adaptive k; documents apart, MTP.
VARIANTS = {
    "v3": [],
    "v2": [
        "model.scoring_func=softmax",
        "model.topk_method=group_limited_greedy",
        "model.norm_topk_prob=false",
        "model.mlp_bias=true",
        "train.sequence_loss=0.05",
        "train.load_balance_loss=0.05",
        "train.router_z_loss=0.01",
    ],
    "adaptive": [
        "model.n_group=1",
        "model.num_experts_per_tok=4",
        "model.adaptive_experts={mass: 0.4, minimum: 1}",
        "train.sequence_loss=0.05",
    ],
    "mtp": [
        "model.num_nextn_predict_layers=2",
        "train.mask_documents=true",
        "model.attention_bias=true",
        "train.load_balance_loss=0.05",
    ],
}


def follow(overrides: list[str], skipped: Sequence[int] = ()) -> dict[str, Any]:
    """Plain PyTorch: one device, the whole global batch at once, clipping and balancing written out.

    ``skipped``: steps that are to change nothing.
    """
    recipe = load_recipe(RECIPE, overrides)
    train = recipe.train
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    init_weights(model, recipe.run.seed)
    shun_the_first_experts(model)
    optimizer = build_optimizer(model, train.optimizer, train.learning_rate)
    objective = Objective(recipe.model, train)
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    seen: dict[str, Any] = {"losses": [], "norms": [], "terms": []}
    for step in range(train.steps):
        batch: Batch = MadeTokens(recipe).global_batch(step)
        sums, counts = objective(model, batch), objective.counts(batch)
        means = {name: sums[name] / counts[name] for name in objective.weights}
        optimizer.zero_grad()
        sum(objective.weights[name] * mean for name, mean in means.items()).backward()
        seen["norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, train.steps, train.learning_rate, train.schedule)
        seen["losses"].append(means.pop("cross_entropy").item())
        seen["terms"].append({name: mean.item() for name, mean in means.items()})
        counted = [gate.router.take_counts() for gate in gates]
        if step + 1 in skipped:
            continue
        optimizer.step()
        for gate, count in zip(gates, counted, strict=True):
            gate.router.load_share = (count / count.mean()).float()
            if gate.e_score_correction_bias is not None:
                gate.e_score_correction_bias += train.balance_step * torch.sign(count.mean() - count).float()
    biases = [gate.e_score_correction_bias for gate in gates]
    seen["biases"] = [[] if bias is None else bias.tolist() for bias in biases]
    seen["weights"] = model.state_dict()
    return seen


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return follow([])


def run_job(folder: Path, ranks: int, overrides: list[str], accelerator: str = "cpu") -> dict[str, Any]:
    arguments = [str(folder), f"launch.processes={ranks}", *overrides]
    start_workers("tests/training/engine_job.py", ranks, arguments, {"DS_ACCELERATOR": accelerator}, 300)
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.parametrize(
    ("variant", "expert_parallel", "stage", "more"),
    [
        ("v2", 2, 2, ["train.micro_batch=1"]),
        ("adaptive", 2, 1, ["train.checkpointing=full"]),
        ("mtp", 2, 1, ["train.micro_batch=2", "train.checkpointing=selective"]),
        pytest.param("v2", 1, 0, ["train.checkpointing=selective"], marks=pytest.mark.slow),
        pytest.param("adaptive", 2, 3, ["train.micro_batch=2"], marks=pytest.mark.slow),
        pytest.param("mtp", 2, 3, ["train.checkpointing=full"], marks=pytest.mark.slow),
        pytest.param("v2", 2, 3, [], marks=pytest.mark.slow),
    ],
)
def test_every_gate_and_loss_is_the_same_under_expert_parallelism(
    tmp_path, variant, expert_parallel, stage, more
) -> None:
    """Whatever the ranks, accumulation and checkpointing: losses, norms, terms, loads and biases."""
    overrides = [f"train.expert_parallel={expert_parallel}", f"train.zero_stage={stage}", *more, *VARIANTS[variant]]
    expected = follow(VARIANTS[variant])
    seen = run_job(tmp_path, 2, overrides)
    assert seen["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert seen["norms"] == pytest.approx(expected["norms"], rel=1e-4)
    for ours, theirs in zip(seen["terms"], expected["terms"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5) and ours
    for ours, theirs in zip(seen["biases"], expected["biases"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-7)
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-*")
    weights = weights_of(checkpoint, VARIANTS[variant])
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0, msg=name)


def weights_of(checkpoint: Path, overrides: list[str] | None = None) -> dict[str, torch.Tensor]:
    """A checkpoint's weights in a model that had none."""
    recipe = load_recipe(RECIPE, overrides or [])
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan"))
    load_weights(model, read_weights(checkpoint))
    return model.state_dict()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_gpu_follows_the_single_device(reference, tmp_path, stage) -> None:
    """Other kernels, TF32 off: close, not equal; a routing that flips would show as far more."""
    seen = run_job(tmp_path, 1, [f"train.zero_stage={stage}"], accelerator="cuda")
    assert seen["losses"] == pytest.approx(reference["losses"], abs=1e-3)
    assert seen["norms"] == pytest.approx(reference["norms"], rel=1e-2)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [
        pytest.param(0, "fp32", marks=pytest.mark.slow),
        pytest.param(1, "bf16", marks=pytest.mark.slow),  # the demo in tests/test_river.py is such a resume
        pytest.param(2, "fp32", marks=pytest.mark.slow),  # test_optimizers.py samples the rest
        pytest.param(3, "bf16", marks=pytest.mark.slow),
    ],
)
def test_resume_is_exact_to_the_last_bit(tmp_path, stage, precision) -> None:
    overrides = [f"train.zero_stage={stage}", f"train.precision={precision}"]
    whole = run_job(tmp_path / "whole", 2, overrides)
    first = run_job(tmp_path / "halves", 2, [*overrides, "train.stop_at=4"])
    second = run_job(tmp_path / "halves", 2, overrides)
    assert first["losses"] + second["losses"] == whole["losses"]
    assert first["norms"] + second["norms"] == whole["norms"]
    assert second["biases"] == whole["biases"]
    last = [sorted((tmp_path / kind / "checkpoints").glob("step-*"))[-1] for kind in ("whole", "halves")]
    ours, theirs = map(weights_of, last)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
