"""Launcher behavior that needs no run: missing nodes, signals at awkward moments, and rejected requests."""

import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from artefacts import lock
from artefacts.errors import RequestError
from artefacts.training_folder import checkpoint_name
from artefacts.worker_status import LOGS, Worker, header, rank_log
from configs.load import load_recipe
from launch import supervise as supervising
from launch.logs import Output
from launch.plan import Plan
from launch.preflight import check_disk, check_memory, visible_gpus
from launch.slurm.in_job import Progress, has_progressed, saved_progress
from launch.slurm.training_job import check_least_nodes
from launch.start import plan, why_failed
from tests.support.launch.runs import RECIPE, ended, launch
from tests.support.training.pairs import with_pairs
from training.estimate.device import device_of
from training.estimate.memory import checkpoint_bytes
from training.runs import finetune_run, pretrain_run

_LITE = RECIPE.parents[1] / "configs" / "deepseek-v2-lite.yaml"
_TIMED_OUT = "torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError\n"


def _node_log(logs: Path, node: str, text: str, age: float) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"node-{node}.txt"
    file.write_bytes(header("launcher") + text.encode())
    os.utime(file, (time.time() - age,) * 2)


def test_nodes_of_a_jobs_previous_start_do_not_count_as_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is requeued within a minute, on two of the recipe's four nodes, one of which is faulty."""
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    recipe = load_recipe(RECIPE, ["launch.kind=slurm", "launch.nodes=4", "launch.processes=1", "train.micro_batch=1"])
    _node_log(tmp_path, "n2", "", age=20)
    _node_log(tmp_path, "n1", _TIMED_OUT, age=20)
    output = Output(tmp_path, apart=0)
    with output.open_node_log() as log:
        log.write(_TIMED_OUT.encode())
    message = why_failed(recipe, output, ["n1", "n2"])
    assert message == "1 of 2 nodes did not join within 600 s (launch.join_seconds): joined: n1; missing: n2"


_GLOO = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:14505"


@pytest.mark.parametrize(
    ("error", "gone", "one_host", "named"),
    [
        (_GLOO, [1, 0], True, "rank 1 exited without reporting an error on n1"),
        # Both ended between two checks of the launcher.
        (_GLOO, [0, 1], True, "rank 1 exited without reporting an error on n1"),
        # The rank that is gone may be on another host.
        (_GLOO, [1, 0], False, "rank 0 on n1 failed first"),
        # The launcher ended rank 1.
        ("OSError: s3://text/a: [Errno 104] Connection reset by peer", [0, 1], True, "rank 0 on n1 failed first"),
        (_GLOO, [0], True, "rank 0 on n1 failed first"),
    ],
)
def test_the_killed_rank_is_named_instead_of_the_one_that_lost_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, gone: list[int], one_host: bool, named: str
) -> None:
    """Rank 0 reports an error and rank 1 exits silently, but DeepSpeed's launcher reports only rank 0."""
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv(LOGS, str(tmp_path))
    output = Output(tmp_path)
    for rank, text in ((1, "step 2"), (0, error)):
        rank_log(tmp_path, rank).write_bytes(header(f"rank {rank}") + f"{text}\n".encode())
    monkeypatch.setenv("RANK", "0")
    Worker().note_failure()
    assert output.explain({"n1": gone}, one_host).startswith(named)


def test_nodes_started_by_hand_may_start_at_different_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    _node_log(tmp_path, "n2", "", age=20)
    _node_log(tmp_path, "n3", "", age=90)
    assert Output(tmp_path).joined() == ["n1", "n2"]


def test_a_signal_during_the_start_of_the_agent_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = supervising._Watched(Plan(["sleep", "3600"], {}, workers=1), tmp_path, grace_seconds=5)
    start = subprocess.Popen

    def interrupted(*arguments, **named):
        process = start(*arguments, **named)
        watched.pass_on(signal.SIGTERM, None)
        return process

    monkeypatch.setattr(supervising.subprocess, "Popen", interrupted)
    with open(tmp_path / "log", "wb") as log:
        status = watched.run(log, lambda: None)
    assert watched.ended_early and status == -signal.SIGKILL


def test_ranks_are_recorded_in_the_order_in_which_they_exit(tmp_path: Path) -> None:
    """Rank 1 exits once the launcher has seen both, and rank 0 once the launcher has seen rank 1 exit."""
    code = (
        "import os, subprocess, sys\n"
        "wait = 'import os, sys, time\\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)'\n"
        "ends = [subprocess.Popen([sys.executable, '-c', wait, os.path.join(sys.argv[1], rank)], "
        "env={**os.environ, 'RANK': rank}) for rank in ('0', '1')]\n"
        "[end.wait() for end in ends]\n"
    )

    def follow() -> None:
        if {0, 1} <= {*watched._workers.values()}:
            (tmp_path / "1").touch()
        if watched.gone == [1]:
            (tmp_path / "0").touch()

    argv = [sys.executable, "-c", code, str(tmp_path)]
    watched = supervising._Watched(Plan(argv, {}, workers=2), tmp_path, grace_seconds=5)
    with open(tmp_path / "log", "wb") as log:
        assert watched.run(log, follow) == 0
    assert watched.gone == [1, 0]


def test_a_slurm_recipe_starts_nothing_on_a_node() -> None:
    with pytest.raises(RequestError, match=r"launch\.kind=slurm starts nothing here"):
        plan(load_recipe(RECIPE, ["launch.kind=slurm"]), "pretrain", "r.yaml", [])


@pytest.mark.parametrize(("limit", "fits"), [("00:03:00", False), ("00:03:01", True), ("1-00:00:00", True)])
def test_a_time_limit_leaves_time_for_the_warning_signal(limit: str, fits: bool) -> None:
    words = ["launch.kind=slurm", f"launch.slurm.train.time={limit}"]
    if fits:
        assert load_recipe(RECIPE, words)
        return
    with pytest.raises(RequestError, match=r"signal_seconds \(180\) must be below the time limit \(00:03:00\)"):
        load_recipe(RECIPE, words)


def test_the_batch_must_fit_on_the_minimum_number_of_nodes() -> None:
    overrides = ["launch.kind=slurm", "launch.nodes=4", "launch.processes=1", "train.micro_batch=1"]
    for least, message in ((2, ""), (3, r"min_nodes \(3\): .* over 3 nodes, only over 2: set min_nodes=2")):
        words = [*overrides, f"launch.slurm.train.min_nodes={least}"]
        with pytest.raises(RequestError, match=message) if message else nullcontext():
            check_least_nodes(load_recipe(RECIPE, words), str(RECIPE), words)


def test_the_holder_of_a_lock_is_named(tmp_path: Path) -> None:
    lock.refuse_if_held(tmp_path / "run")
    with lock.hold(tmp_path / "run"), pytest.raises(RequestError, match=f"is being written by process {os.getpid()} "):
        lock.refuse_if_held(tmp_path / "run")
    with lock.share(tmp_path / "run", lambda: None):
        lock.refuse_if_held(tmp_path / "run")


def test_a_job_that_replaced_a_longer_run_has_progressed(tmp_path: Path) -> None:
    recipe, layout = with_pairs(tmp_path)

    def progress_after(seed: int, *steps: int) -> Progress:
        changed = recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": seed})})
        run = pretrain_run(changed, layout)
        run.open("", replace=True)
        for step in steps:
            (run.folder / "checkpoints" / checkpoint_name(step)).mkdir(parents=True)
        return saved_progress(recipe, layout, "pretrain")

    earlier = progress_after(1, 50)
    assert has_progressed(progress_after(recipe.run.seed), earlier)
    assert not has_progressed(earlier, replaced := progress_after(2))
    assert has_progressed(earlier, saved := progress_after(2, 4)) and has_progressed(replaced, saved)
    assert not has_progressed(saved, saved) and has_progressed(saved, progress_after(2, 8))


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose nvidia-smi reports one GPU of 16 GB."""
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\n[ "$1" = -L ] && echo "GPU 0: small" || echo 16384\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_run_far_above_the_memory_is_rejected(gpu: None) -> None:
    lite = ["launch.nodes=1", "launch.processes=1", "train.expert_parallel=1"]
    with pytest.raises(RequestError, match=r"17.2 GB \(nvidia-smi\): no setting fits: .* set launch.device_memory"):
        check_memory(load_recipe(_LITE, lite))
    assert check_memory(load_recipe(_LITE, [*lite, "launch.device_memory=2T"])) == []


def test_a_job_runs_on_other_gpus_than_this_machines(gpu: None) -> None:
    device = device_of(load_recipe(_LITE, ["launch.kind=slurm"]))
    assert device.bytes == 80 * 2**30 and not device.known
    (line,) = check_memory(
        load_recipe(_LITE, ["launch.kind=slurm", "train.micro_batch=36", "train.activation_checkpointing=none"])
    )
    assert line.startswith("warning: a rank is estimated to need")


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        ([], 4),  # 6 steps with a validation each: the 2 newest, the best, and the one being written
        (["finetune.keep_best=false"], 1),  # only the last step's
        (["finetune.eval_every=3"], 2),
        (["finetune.keep_best=false", "train.save_every=1"], 3),
        (["finetune.keep_best=false", "train.save_every=4"], 2),  # after step 4 and after the last one
        (["finetune.keep_best=false", "train.save_every=1", "train.keep_every=3"], 5),
        (["finetune.epochs=0.6", "train.steps=1000", "train.save_every=1"], 2),
    ],
)
def test_the_disk_has_space_for_a_stages_own_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], most: int
) -> None:
    """The stage has 12 examples, 4 per step."""
    recipe, layout = with_pairs(tmp_path, None, "finetune.epochs=2", *overrides)
    run = finetune_run(recipe, layout, "dpo")
    size = checkpoint_bytes(recipe, recipe.finetune[0])
    for free, warned in ((most * size, False), (most * size - 1, most > 1)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if free < size:
            continue
        warnings = check_disk(recipe, run, layout)
        assert len(warnings) == warned and all(f"up to {most} checkpoints" in line for line in warnings)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_do_not_count(gpu: None, hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == 1 and device_of(load_recipe(_LITE)).bytes == 2**34
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert visible_gpus() == 0 and not device_of(load_recipe(_LITE)).known


def test_a_hint_for_several_slurm_nodes_can_be_pasted(tmp_path: Path) -> None:
    """The named target loads the same recipe without a launcher, so the hint has to say that SLURM starts the nodes."""
    nodes = [f"run.root={tmp_path}", "launch.nodes=2", "launch.processes=1"]
    _, err = ended(launch("slurm", *nodes), 2)
    (arguments,) = re.findall(r'run `make data RECIPE=\S+ ARGS="(.*)"` first', err)
    assert load_recipe(RECIPE, shlex.split(arguments)).launch.nodes == 2
