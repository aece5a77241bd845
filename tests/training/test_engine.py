"""DeepSpeed processes over gloo give what one device without DeepSpeed gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.load import load_recipe
from tests.training.engine_job import RECIPE, MadeTokens
from training.assemble import lm_loss
from training.data.batch import Batch
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.optimizers import build_optimizer
from training.schedules import learning_rate

pytestmark = pytest.mark.engine
CHECKOUT = Path(__file__).parents[2]

#: (ranks, expert-parallel size, ZeRO stage, more overrides)
CELLS = [
    (1, 1, 1, []),
    (2, 1, 1, []),
    (2, 2, 1, []),
    (2, 2, 2, []),
    (2, 2, 3, []),
    (2, 2, 0, ["train.micro_batch=4", "train.checkpointing=full"]),
    (2, 1, 0, ["train.micro_batch=1"]),
]


@pytest.fixture(scope="module")
def reference() -> dict[str, list]:
    """Plain PyTorch: one device, the whole global batch at once, clipping and balancing written out."""
    recipe = load_recipe(RECIPE)
    train = recipe.train
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    init_weights(model, recipe.run.seed)
    optimizer = build_optimizer(model, train.optimizer, train.learning_rate)
    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    counts: list[torch.Tensor] = []
    for gate in gates:
        gate.register_forward_hook(lambda _m, _i, out: counts.append(out[2]))
    seen: dict[str, list] = {"losses": [], "norms": []}
    for step in range(train.steps):
        batch: Batch = MadeTokens(recipe).global_batch(step)
        counts.clear()
        loss, targets = lm_loss(model, batch)
        optimizer.zero_grad()
        (loss / targets).backward()
        seen["norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, train.steps, train.learning_rate, train.schedule)
        optimizer.step()
        for gate, count in zip(gates, counts, strict=True):
            mean = count.double().mean()
            gate.e_score_correction_bias += train.balance_step * torch.sign(mean - count).float()
        seen["losses"].append(float(loss / targets))
    seen["biases"] = [gate.e_score_correction_bias.tolist() for gate in gates]
    return seen


def run_job(out: Path, ranks: int, overrides: list[str]) -> dict[str, list]:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    argv += [str(CHECKOUT / "tests/training/engine_job.py"), str(out), f"launch.processes={ranks}", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment.setdefault("TORCH_EXTENSIONS_DIR", str(CHECKOUT / ".cache" / "torch_extensions"))
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize(("ranks", "expert_parallel", "stage", "more"), CELLS)
def test_engine_equals_single_device(reference, tmp_path, ranks, expert_parallel, stage, more) -> None:
    overrides = [f"train.expert_parallel={expert_parallel}", f"train.zero_stage={stage}", *more]
    seen = run_job(tmp_path / "seen.json", ranks, overrides)
    assert min(reference["norms"]) > 0.5, "clipping must bite for this to test it"
    assert seen["losses"] == pytest.approx(reference["losses"], abs=1e-5)
    assert seen["norms"] == pytest.approx(reference["norms"], rel=1e-4)
    for ours, theirs in zip(seen["biases"], reference["biases"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-7)
        assert any(ours)
    assert seen["bias_dtype"] == "torch.float32"
