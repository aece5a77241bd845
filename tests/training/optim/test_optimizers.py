"""Optimizers, precisions and offload give the same at every stage, on any number of ranks and after a resume."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from artefacts.errors import RequestError
from artefacts.metrics_log import read_metrics
from configs.load import load_recipe
from tests.support.fork_server import worker_environment
from tests.support.training.engine_job import RECIPE
from tests.support.training.grid import Cell, Task, run_tasks
from tests.training.checkpoint.test_topologies import complain, differences, different_weights
from tests.training.engine.test_engine import follow
from training.checkpoint.full_weights import read_weights
from training.optim.muon import matrices, orthogonalized

OPTIMIZERS = {
    "muon": ("train.optimizer={name: muon, momentum: 0.9}",),
    "sgd": ("train.optimizer={name: sgd, momentum: 0.9}", "train.learning_rate=0.3"),
    "adam": ("train.optimizer={name: adam}",),
}


def test_muon_equals_torch() -> None:
    """One matrix of either shape under weight decay, ten steps; torch computes in bf16."""
    from training.engine.partitions import ParamSlice, Partition
    from training.optim.muon import Muon

    for shape in ((6, 10), (10, 6), (8, 8)):
        ours = torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
        theirs = torch.nn.Parameter(ours.detach().clone())
        peer = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        group = {"params": [ours], "orthogonal": True}
        muon = Muon([group], lr=0.02, momentum=0.9, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        muon.bind([Partition(ours, [ParamSlice("w", shape, 0, ours.numel(), 0)])], lambda *_: True)
        generator = torch.Generator().manual_seed(2)
        for _ in range(10):
            gradient = torch.randn(shape, generator=generator)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            muon.step()
            peer.step()
        assert (ours - theirs).abs().max() < 0.02 * 0.1, "a tenth of a step, over ten of them"
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_orthogonalized_matrices_have_singular_values_near_one_times_the_scale() -> None:
    batch = torch.randn(3, 12, 30, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(batch) / (0.2 * 30**0.5))
    assert values.min() > 0.6 and values.max() < 1.3


def test_the_halves_of_a_fused_weight_are_separate_matrices() -> None:
    assert matrices("model.layers.1.mlp.experts.gate_up_proj", (8, 32, 16)) == (16, 16)
    assert matrices("model.layers.1.mlp.experts.w2", (8, 32, 16)) == (32, 16)
    assert matrices("model.layers.1.self_attn.qkv_proj.weight", (48, 16)) == (16, 16)
    assert matrices("decoder.layers.1.cross_attn.kv_proj.weight", (32, 16)) == (16, 16)
    assert matrices("model.layers.1.self_attn.kv_b_proj.weight", (32, 16)) == (32, 16)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["muon", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "adam"))])
def test_every_stage_and_topology_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    """Clipping applies to the gradient; DeepSpeed's Muon clips the update, and differs between stages."""
    cells = [Cell(2, 2, stage) for stage in (0, 1, 2, 3)] + [Cell(2, 1, 1, 2), Cell(1, 1, 3), Cell(2, 1, 3)]
    check(name, cells, tmp_path)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_four_ranks_give_the_same_weights(name: str, tmp_path: Path) -> None:
    check(name, [Cell(4, size, stage) for size in (1, 2, 4) for stage in (0, 1, 2, 3)], tmp_path)


def check(name: str, cells: list[Cell], folder: Path) -> None:
    more = OPTIMIZERS[name]
    expected = follow(list(more))
    assert min(expected["norms"]) > 0.5, "clipping must bite"
    tasks = [Task(cell, folder / str(number), more) for number, cell in enumerate(cells)]
    run_tasks(tasks, folder)
    failures = {str(t.cell): differences(t.seen(), expected) + different_weights(t, expected) for t in tasks}
    complain({cell: faults for cell, faults in failures.items() if faults})


def resumed(folder: Path, cells: list[tuple[Cell, tuple[str, ...]]]) -> list[tuple[Task, Task, Task]]:
    """Train every cell in one run, and in two halves with a resume."""
    runs = []
    for number, (cell, more) in enumerate(cells):
        whole = Task(cell, folder / f"whole-{number}", more)
        first = Task(cell, folder / f"first-{number}", (*more, "train.simulate_crash_at=4"))
        second = Task(cell, folder / f"second-{number}", more, first.out / "checkpoints")
        runs.append((whole, first, second))
    run_tasks([task for run in runs for task in run], folder)
    return runs


def last(task: Task) -> dict[str, Any]:
    return dict(read_weights(task.out / "checkpoints" / "step-00000008"))


BF16, OFFLOAD = ("train.precision=bf16",), ("train.offload_optimizer=cpu",)
RESUMED = {
    "adamw": [(Cell(2, 2, 0), ()), (Cell(2, 2, 2), ())],
    "muon": [(Cell(2, 2, 1), OPTIMIZERS["muon"]), (Cell(2, 2, 3), OPTIMIZERS["muon"])],
    "bf16": [(Cell(2, 2, 1), BF16), (Cell(2, 2, 3, 2), BF16)],
    "offload": [(Cell(2, 2, 1), OFFLOAD), (Cell(2, 2, 3), OFFLOAD)],
    "more": [
        (Cell(2, 2, 2), OPTIMIZERS["sgd"]),
        (Cell(2, 1, 3), OPTIMIZERS["adam"]),
        (Cell(2, 2, 2), BF16),
        (Cell(2, 2, 2), OFFLOAD),
    ],
}


@pytest.mark.engine
@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "more" else k for k in RESUMED])
def test_every_optimizer_precision_and_offload_resumes_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    cells = RESUMED[kind]
    for whole, first, second in resumed(tmp_path, cells):
        name = f"{whole.cell} {whole.more}"
        for key in ("losses", "norms"):
            assert first.seen()[key] + second.seen()[key] == whole.seen()[key], name
        assert second.seen()["biases"] == whole.seen()["biases"], name
        ours, theirs = last(whole), last(second)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.engine
@pytest.mark.slow
def test_offload_computes_the_same(tmp_path: Path) -> None:
    more = ("train.offload_optimizer=cpu",)
    expected = follow([])
    tasks = [Task(Cell(2, 2, stage), tmp_path / str(stage), more) for stage in (1, 2, 3)]
    run_tasks(tasks, tmp_path)
    failures = {str(t.cell): differences(t.seen(), expected) + different_weights(t, expected) for t in tasks}
    complain({cell: faults for cell, faults in failures.items() if faults})


#: Parameter groups of more than 1 MiB, since DeepSpeed does not swap smaller ones.
LARGE = ("model.hidden_size=256", "model.intermediate_size=2048", "model.moe_intermediate_size=256")
needs_libaio = pytest.mark.skipif(
    not Path("/usr/include/libaio.h").exists(), reason="needs libaio's headers (Debian: libaio-dev)"
)


def build_file_access(**more: str) -> Path:
    """Build DeepSpeed's operator, which takes minutes; returns the folder of extensions."""
    build = "import pathlib, sys, training.engine.operators as p; p.build_file_access(pathlib.Path(sys.argv[1]))"
    where = worker_environment()
    argv = [sys.executable, "-c", build, where["TORCH_EXTENSIONS_DIR"]]
    subprocess.run(argv, env={**os.environ, **where, **more}, check=True)
    return Path(where["TORCH_EXTENSIONS_DIR"])


@pytest.fixture(scope="module")
def file_access() -> Path:
    return build_file_access()


@pytest.mark.engine
@pytest.mark.slow
@needs_libaio
def test_a_dead_build_and_another_ninja_do_not_stop_a_start(file_access: Path, tmp_path: Path) -> None:
    """torch would wait forever for a killed build's lock, and rebuild everything after a change of ninja's version."""
    other = tmp_path / "ninja"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    (file_access / "async_io" / "lock").touch()
    (operator,) = file_access.glob("async_io/*.so")
    before = operator.stat().st_mtime_ns
    build_file_access(PATH=os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    assert operator.stat().st_mtime_ns == before and not (file_access / "async_io" / "lock").exists()


@pytest.mark.engine
@pytest.mark.slow
@needs_libaio
@pytest.mark.parametrize("more", [(), ("train.precision=bf16",)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_offload_to_a_disk_computes_the_same_and_resumes_to_the_last_bit(
    file_access, tmp_path: Path, accumulation: int, more: tuple[str, ...]
) -> None:
    """The same as in the host's memory, and another topology resumes from its checkpoint."""
    cell, kind = Cell(1, 1, 3, accumulation), (*LARGE, *more)
    disk = tmp_path / "disk"
    ((whole, first, second),) = resumed(
        tmp_path, [(cell, (*kind, "train.offload_optimizer=nvme", f"train.offload_path={disk}"))]
    )
    swapped = [path for path in disk.rglob("*.swp") if path.name.startswith("exp_avg")]
    assert swapped, "nothing lay on the disk"
    held, other = (
        Task(cell, tmp_path / "held", (*kind, *OFFLOAD)),
        Task(Cell(2, 2, 1), tmp_path / "other", kind, first.out / "checkpoints"),
    )
    run_tasks([held, other], tmp_path)
    assert whole.seen()["losses"] == pytest.approx(held.seen()["losses"], abs=1e-5)
    assert whole.seen()["norms"] == pytest.approx(held.seen()["norms"], rel=1e-4)
    assert other.seen()["losses"] == pytest.approx(held.seen()["losses"][4:], abs=0.05 if more else 1e-5)
    assert first.seen()["losses"] + second.seen()["losses"] == whole.seen()["losses"]
    ours, theirs = last(whole), last(second)
    assert len(ours) == len(last(held))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.engine
@pytest.mark.slow
@needs_libaio
def test_deepspeed_has_no_correct_offload_to_a_disk_on_two_ranks(file_access, tmp_path: Path) -> None:
    """This is why recipes may not use it; when this fails, they may."""
    swapping = Task(Cell(2, 2, 3), tmp_path / "swapping", LARGE, swap_to=tmp_path / "disk")
    run_tasks([swapping], tmp_path)
    seen, expected = swapping.seen()["losses"], follow(list(LARGE))["losses"]
    assert seen[0] == pytest.approx(expected[0], abs=1e-5)
    assert abs(seen[1] - expected[1]) > 0.01


@pytest.mark.engine
def test_offload_to_a_disk_names_missing_requirements(tmp_path: Path) -> None:
    more = ("train.offload_optimizer=nvme", f"train.offload_path={tmp_path / 'disk'}")
    with pytest.raises(AssertionError, match=r"train\.offload_optimizer=nvme needs a C\+\+ compiler and libaio"):
        run_tasks([Task(Cell(1, 1, 3), tmp_path / "out", more)], tmp_path, {"CC": "false"})
    (tmp_path / "disk").rmdir()
    (tmp_path / "disk").write_text("a file")
    with pytest.raises(
        AssertionError, match=r"train\.offload_path=.* cannot be created: File exists; choose another folder"
    ):
        run_tasks([Task(Cell(1, 1, 3), tmp_path / "out", more)], tmp_path)


@pytest.mark.engine
def test_bf16_follows_fp32_at_every_stage(tmp_path: Path) -> None:
    """Gradients are summed in fp32, so norms agree too, over expert groups and micro-batches."""
    cells = [Cell(2, size, stage, accumulation) for stage in (1, 2, 3) for size, accumulation in ((2, 1), (1, 2))]
    tasks = [Task(cell, tmp_path / str(number), ("train.precision=bf16",)) for number, cell in enumerate(cells)]
    run_tasks(tasks, tmp_path)
    expected = follow([])
    for task in tasks:
        seen, name = task.seen(), str(task.cell)
        assert seen["losses"] == pytest.approx(expected["losses"], abs=0.05), name
        # The first steps, before rounding changes the routing of a token.
        assert seen["norms"][:3] == pytest.approx(expected["norms"][:3], rel=0.03), name


@pytest.mark.engine
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: DeepSpeed has no fp16 on CPU")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp16_finds_its_loss_scale_and_resumes_with_it(stage: int, tmp_path: Path) -> None:
    """A step with too large a loss scale is skipped and changes nothing, but does not count as a fault."""
    cell, more = Cell(1, 1, stage), ("train.precision=fp16", "train.watch.skipped_in_a_row=0")
    whole = Task(cell, tmp_path / "whole", more)
    first = Task(cell, tmp_path / "first", (*more, "train.simulate_crash_at=4"))
    second = Task(cell, tmp_path / "second", more, first.out / "checkpoints")
    run_tasks([whole, first, second], tmp_path, {"DS_ACCELERATOR": "cuda"})
    seen = whole.seen()
    assert set(seen["skipped"]) <= {None, "loss_scale"}
    assert seen["losses"][0] == pytest.approx(follow([])["losses"][0], abs=0.02)
    halves = [first.seen(), second.seen()]
    assert halves[0]["losses"] + halves[1]["losses"] == pytest.approx(seen["losses"], abs=0.02)
    scales = [[r["loss_scale"] for r in read_metrics(t.out / "metrics.jsonl")["train"]] for t in (whole, first, second)]
    assert scales[1] + scales[2] == scales[0]


@pytest.mark.engine
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: DeepSpeed has no fp16 on CPU")
def test_fp16_whose_scale_cannot_be_lowered_any_more_ends_the_run(tmp_path: Path) -> None:
    more = ("train.precision=fp16", "train.steps=40", "train.watch.skipped_in_a_row=2")
    bad = {"rank": 0, "loss": [], "gradient": list(range(1, 41))}
    with pytest.raises(AssertionError, match="3 steps in a row had a non-finite loss or gradient"):
        run_tasks([Task(Cell(1, 1, 1), tmp_path / "out", more, faults=bad)], tmp_path, {"DS_ACCELERATOR": "cuda"})


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.optimizer={name: adamw, momentum: 0.9}"], "momentum is not read by adamw"),
        (["train.optimizer={name: sgd, beta2: 0.9}"], "beta2 is not read by sgd"),
        (["train.optimizer.name=lion"], "train.optimizer.name"),
        (["train.zero_stage=0", "train.precision=bf16"], "zero_stage=1 computes the same as 0"),
        (["train.zero_stage=0", "train.offload_optimizer=cpu"], "needs zero_stage 1 to 3"),
        (["train.offload_optimizer=nvme", "train.offload_path=/tmp"], "needs zero_stage=3"),
        (
            ["train.zero_stage=3", "train.offload_optimizer=nvme", "train.offload_path=/tmp", "launch.processes=2"],
            "nvme with 2 processes: DeepSpeed 0.19 would silently use wrong gradients",
        ),
        (["train.offload_path=/tmp"], "set both or neither"),
    ],
)
def test_incompatible_settings_are_rejected(overrides: list[str], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        load_recipe(RECIPE, overrides)
