"""Known problems of such systems, and where DeepSpeed and AutoEP are wrong or silent: one test per problem.

Two more are elsewhere: clipping with our Muon in ``test_optimizers.py``, two agents on one host in
``tests/test_end_to_end.py``.

Tests named ``test_deepspeed_has_no...`` show what DeepSpeed lacks. When one fails, DeepSpeed has fixed it, and our
workaround can be removed.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.metrics_log import read_metrics
from configs.load import load_recipe
from tests.support.training.engine_job import RECIPE, SyntheticTokens
from tests.support.training.grid import Cell, Task, run_tasks
from tests.training.engine.test_engine import VARIANTS, follow
from training.checkpoint.full_weights import read_weights
from training.checkpoint.index import Contents
from training.checkpoint.retention import Retention
from training.checkpoint.save import RunIdentity, Saver
from training.distributed.join import join
from training.distributed.ranks import Ranks, destroy_process_group
from training.engine.build import build_engine
from training.engine.deepspeed_config import deepspeed_config
from training.engine.partitions import partitions
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.objective import Objective
from training.optim.build import build_optimizer, parameter_groups
from training.trainer.load_balancer import BIAS, Balancer

pytestmark = [pytest.mark.engine]

HALF = ("train.simulate_crash_at=4",)
NOISE = ("model.router_noise={kind: fixed, std: 0.3}",)
LEARNED = ("model.router_noise={kind: learned, std: 0.3}",)
BF16 = ("train.precision=bf16",)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """All trainings on two ranks whose results the tests below check."""
    folder = tmp_path_factory.mktemp("traps")

    def task(name: str, cell: Cell, *more: str, begin: str | None = None) -> Task:
        return Task(cell, folder / name, more, folder / begin / "checkpoints" if begin else None)

    tasks = [
        *(task(f"stage {stage}", Cell(2, 2, stage)) for stage in (0, 1, 2, 3)),
        task("half", Cell(2, 2, 1), *HALF),
        task("resumed", Cell(2, 2, 1), begin="half"),
        task("converted", Cell(2, 1, 2), begin="half"),
        task("half of stage 3", Cell(2, 2, 3), *HALF),
        task("stage 3 converted", Cell(2, 1, 3), begin="half of stage 3"),
        task("noise", Cell(2, 2, 1), *NOISE),
        task("noise, recomputed", Cell(2, 2, 1, checkpointing="full"), *NOISE),
        task("learned noise", Cell(2, 2, 1), *LEARNED),
        task("learned noise, whole experts", Cell(2, 1, 1), *LEARNED),
        task("bf16", Cell(2, 2, 1), *BF16),
        task("bf16, recomputed", Cell(2, 2, 1, checkpointing="full"), *BF16),
        task("bf16, whole experts", Cell(2, 1, 1), *BF16),
        task("validated", Cell(2, 2, 1), "train.eval_every=2"),
        task("validated alone", Cell(1, 1, 1), "train.eval_every=2"),
        task("adaptive", Cell(2, 2, 1, checkpointing="full"), *VARIANTS["adaptive"]),
    ]
    run_tasks(tasks, folder)
    return {task.out.name: task for task in tasks}


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return follow([])


def checkpoint_of(task: Task) -> Path:
    *_, last = sorted((task.out / "checkpoints").glob("step-*"))
    return last


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_rank_that_receives_no_token_does_not_hang_the_backward_all_to_all(done, reference, stage) -> None:
    seen = done[f"stage {stage}"].seen()
    assert not any(seen["loads"][0][0][:4]), "all experts of rank 0 go without"
    assert seen["losses"] == pytest.approx(reference["losses"], abs=1e-5)


@pytest.mark.parametrize("kind", ["noise", "bf16"])
def test_recomputation_does_not_route_again(done, kind) -> None:
    """Different noise or rounding during recomputation would change the routing and break the ranks' exchange."""
    kept, recomputed = done[kind].seen(), done[f"{kind}, recomputed"].seen()
    assert kept["losses"] == recomputed["losses"]
    assert kept["loads"] == recomputed["loads"]


def test_learned_noise_is_the_same_under_expert_parallelism(done) -> None:
    apart, whole = done["learned noise"].seen(), done["learned noise, whole experts"].seen()
    assert apart["losses"] == pytest.approx(whole["losses"], abs=1e-5)
    assert apart["norms"] == pytest.approx(whole["norms"], rel=1e-5)
    assert apart["loads"] == whole["loads"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_gradient_norm_counts_each_expert_once_over_the_groups(done, reference, stage) -> None:
    seen = done[f"stage {stage}"].seen()
    assert seen["norms"] == pytest.approx(reference["norms"], rel=1e-5)
    assert min(seen["norms"]) > 0.5, "and clipping by it bites"


def test_the_gradient_norm_counts_each_expert_once_in_bf16(done) -> None:
    apart, whole = done["bf16"].seen()["norms"], done["bf16, whole experts"].seen()["norms"]
    assert apart == pytest.approx(whole, rel=0.02)


def test_the_bias_is_not_lost_in_a_change_of_topology(done, reference) -> None:
    saved = Contents(checkpoint_of(done["half"])).buffers()
    biases = [tensor for name, tensor in saved.items() if name.endswith(BIAS)]
    assert len(biases) == 2 and all(bias.any() and bias.dtype == torch.float32 for bias in biases)
    # The first step already uses it: with zeros its loss would differ in the second digit.
    assert done["converted"].seen()["losses"] == pytest.approx(reference["losses"][4:], abs=1e-5)


def test_the_bias_stays_fp32_under_bf16(done) -> None:
    assert done["bf16"].seen()["bias_dtype"] == "torch.float32"


def test_a_resume_in_the_same_topology_restores_the_right_experts(done) -> None:
    whole, resumed = (dict(read_weights(checkpoint_of(done[name]))) for name in ("stage 1", "resumed"))
    experts = [name for name in whole if ".experts." in name]
    assert len(experts) == 2 * 8 * 3
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    first, second = (whole[f"model.layers.1.mlp.experts.{number}.up_proj.weight"] for number in (0, 4))
    assert not torch.equal(first, second)


def test_stage_3_in_another_topology_is_correct_after_the_first_step(done, reference) -> None:
    """With DeepSpeed's universal checkpoint the first step is right and the second is wrong."""
    assert done["stage 3 converted"].seen()["losses"] == pytest.approx(reference["losses"][4:], abs=1e-5)


def test_evaluation_does_not_hang_where_batches_do_not_divide_and_moves_nothing(done, reference) -> None:
    """Three batches over two ranks that share experts: alone in the last round, rank 0 would wait forever."""
    both, alone = (read_metrics(done[name].out / "metrics.jsonl") for name in ("validated", "validated alone"))
    losses = [[record["loss"] for record in metrics["validation"]] for metrics in (both, alone)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    seen = done["validated"].seen()
    assert seen["losses"] == pytest.approx(reference["losses"], abs=1e-5)
    assert seen["loads"] == done["stage 1"].seen()["loads"]


def test_slots_that_adaptive_routing_leaves_unused_are_not_counted(done) -> None:
    """AutoEP counts them, and recomputed layers twice, which would affect biases and loads."""
    expected, seen = follow(VARIANTS["adaptive"]), done["adaptive"].seen()
    for ours, theirs in zip(seen["biases"], expected["biases"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-7)


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """A process group of one. DeepSpeed caches its groups, so there is only one per process."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    yield join()
    destroy_process_group()


def built(ranks: Ranks, *overrides: str, optimizer: torch.optim.Optimizer | None = None, **more: Any) -> Any:
    """An engine of one process around the small model."""
    recipe = load_recipe(RECIPE, ["train.micro_batch=8", *overrides])
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    init_weights(model, recipe.run.seed)
    config = deepspeed_config(recipe.train, 1, 1, recipe.train.global_batch, recipe.micro_batch)
    config["expert_parallel"] |= more
    chosen = optimizer or build_optimizer(model, recipe.train.optimizer, recipe.train.learning_rate)
    return build_engine(model, chosen, config, ranks), Objective(recipe.model, recipe.train), SyntheticTokens(recipe)


def test_evaluation_moves_no_counts(alone) -> None:
    engine, objective, tokens = built(alone)
    balancer, batch = Balancer(engine.module, 0.1), tokens.global_batch(0)
    theirs = [module.tokens_per_expert for module in engine.module.modules() if hasattr(module, "ep_size")]
    engine.eval()
    with torch.no_grad():
        objective.cross_entropy(engine, batch)
    assert all(counts.any() for counts in theirs), "AutoEP's own counter moves in evaluation: not what to go by"
    assert balancer.update() == []


def test_no_operator_is_built_for_inference(alone) -> None:
    """On CPU DeepSpeed would compile at every start, or wait for the lock of a compilation that was killed."""
    built(alone)
    assert deepspeed.comm.comm.cdb.shm_comm_op is None


def test_deepspeed_has_no_gradient_norm_at_stage_0_in_fp32(alone) -> None:
    engine, objective, tokens = built(alone, "train.zero_stage=0")
    engine.backward(sum(objective(engine, tokens.global_batch(0)).values()))
    engine.step()
    assert engine.get_global_grad_norm() is None


def test_deepspeed_has_no_bias_balancing_of_its_own(alone) -> None:
    with pytest.raises(Exception, match="load_balance_coeff"):
        built(alone, load_balance_coeff=0.001)


@pytest.mark.parametrize("stage", [1, 2])
def test_expert_parameters_have_a_group_of_their_own(alone, stage) -> None:
    """DeepSpeed refuses it otherwise."""
    recipe = load_recipe(RECIPE, [f"train.zero_stage={stage}"])
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    groups = parameter_groups(model, 0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all((".experts." in names[p]) == group.get("moe", False) for group in groups for p in group["params"])
    config = deepspeed_config(recipe.train, 1, 1, 8, 8)
    with pytest.raises(AssertionError, match="moe"):
        deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)


def test_deepspeed_has_no_correct_clipping_with_muon(alone) -> None:
    """Under ZeRO it clips the orthogonalized update, so we use our own. When this fails, DeepSpeed's may be used."""
    moved = {}
    for stage in (0, 1):
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 16, bias=False)
        layer.weight.use_muon = True
        config = {
            "train_batch_size": 4,
            "zero_optimization": {"stage": stage},
            "gradient_clipping": 0.5,
            "optimizer": {"type": "Muon", "params": {"lr": 0.1, "momentum": 0.9}},
        }
        engine, *_ = deepspeed.initialize(model=layer, model_parameters=layer.parameters(), config=config)
        inputs, before = torch.randn(4, 16), layer.weight.detach().clone()
        loss = engine(inputs).pow(2).mean()
        (gradient,) = torch.autograd.grad(layer(inputs).pow(2).mean(), layer.weight)
        assert gradient.norm() < 0.5, "nothing to clip"
        engine.backward(loss)
        engine.step()
        moved[stage] = (layer.weight.detach() - before).norm().item()
        engine.destroy()
    assert moved[1] < 0.5 * moved[0]


def test_a_checkpoint_that_cannot_be_published_leaves_the_next_intact(alone, tmp_path: Path) -> None:
    """Other ranks may be writing it already while rank 0 handles the failure."""
    engine, *_ = built(alone)
    saver = Saver(partitions(engine), tmp_path, RunIdentity({}, {}, {}, {"ranks": 1}), alone, Retention(9))
    (tmp_path / "step-00000009").mkdir()  # skipped when the run resumed, and newer than the checkpoint to be published
    (tmp_path / "previous").write_text("a file where the folder should be")
    begun_by_another = tmp_path / ".step-00000004.partial" / "rank-00001.safetensors"
    begun_by_another.parent.mkdir()
    begun_by_another.write_text("")
    saver.begin(2, {}, {})
    assert "File exists" in saver.drain()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-00000004.partial", "previous", "step-00000009"]
    (tmp_path / "previous").unlink()
    saver.begin(4, {}, {})
    assert saver.drain() == ""
    assert begun_by_another.name in {path.name for path in (tmp_path / "step-00000004").iterdir()}
    assert manifest.faults(tmp_path / "step-00000004") == []
    assert len(list((tmp_path / "previous").iterdir())) == 1


def test_reduce_scatter_which_expert_groups_need_cannot_be_switched_off() -> None:
    with pytest.raises(RequestError, match=r"deepspeed\.zero_optimization\.reduce_scatter is set from"):
        load_recipe(RECIPE, ["train.deepspeed={zero_optimization: {reduce_scatter: false}}"])


def test_reading_data_leaves_the_global_random_numbers_alone() -> None:
    """``iter(DataLoader)`` draws from them: a resumed run would have different noise."""
    from training.data.prefetch import Prefetched

    tokens = SyntheticTokens(load_recipe(RECIPE))
    before = torch.get_rng_state()
    with Prefetched(tokens, 2, 8, torch.device("cpu")) as data:
        for step in range(8):
            data.micro_batches(step, 0, 2, 2)
    assert torch.equal(torch.get_rng_state(), before)
