"""Pretraining as a job of a real SLURM cluster on this host: requeued, preempted, on fewer nodes, and with errors."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.launch.runs import RECIPE, another_seed, ended, launch, losses, make_data, steps
from tests.support.launch.slurm_cluster import SlurmCluster, missing
from tests.support.paths import CHECKOUT
from tests.support.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

#: About three steps per second, so that there is time to interfere; one CPU per node.
_SAVED = "stopped, everything is saved"
SLOW = ["train.global_batch_tokens=4096", "train.precision=fp32", "launch.nodes=2", "launch.processes=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


class Submitted:
    """A training job and the folder of its run."""

    def __init__(
        self, cluster: SlurmCluster, root: Path, *overrides: str, recipe: Path = RECIPE, verb: str = "pretrain"
    ) -> None:
        self.cluster, self.root = cluster, root
        out, _ = ended(launch("slurm", f"run.root={root}", *overrides, env=cluster.env(), recipe=recipe, verb=verb))
        self.id = re.findall(r"job (\d+)", out)[0]
        self.log = root / "end-to-end" / "logs" / f"{verb}-{self.id}.out"

    def state(self) -> str:
        return self.cluster.states(self.id).get(self.id, "")

    def exit_status(self) -> int:
        return int(re.findall(r" ExitCode=(\d+):0", self.cluster.run("scontrol", "show", "job", self.id).stdout)[0])

    def end(self, seconds: float = PATIENCE) -> tuple[str, str]:
        """Wait for the end of the job; returns its state and log."""
        wait_until(lambda: self.state() in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), "end of the job", seconds)
        return self.state(), self.log.read_text()

    def reach(self, step: int) -> None:
        wait_until(lambda: max(steps(self.root), default=0) >= step, f"step {step}\n{self.output()}")

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def test_a_job_requeues_itself_on_any_available_nodes(cluster, data, tmp_path, capsys):
    """Requeued twice from outside, preempted once by a job of another partition, and finally on one node."""
    overrides = [f"data.root={data}", *SLOW, "train.steps=60", "train.save_every=6", "launch.grace_seconds=20"]
    job = Submitted(
        cluster, tmp_path, *overrides, "launch.slurm.train.min_nodes=1", "launch.slurm.train.signal_seconds=60"
    )
    refused = ended(launch("slurm", f"run.root={tmp_path}", *overrides, env=cluster.env()), 2)[1]
    assert f"job {job.id} is still queued or running" in refused
    for lives, step in ((1, 8), (2, 16)):
        job.reach(step)
        assert cluster.run("scontrol", "requeue", job.id).returncode == 0
        began = time.monotonic()
        wait_until(lambda lives=lives: job.output().count("resuming after step") == lives, f"resume {lives}")
        saved = int(re.findall(r"resuming after step (\d+)", job.output())[-1])
        assert saved >= step, "what was done since the last checkpoint was not saved"
        job.reach(saved + 1)
        resumed = time.monotonic() - began
        _print(capsys, f"from requeue {lives} to the first resumed step: {resumed:.1f} s")
    job.reach(26)
    saved = job.output().count(_SAVED)
    argv = ("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent")
    urgent = cluster.run(*argv, "--wrap=sleep 3").stdout.strip()
    seconds = wait_until(lambda: job.output().count(_SAVED) > saved, "stop")
    _print(capsys, f"from the submission of an urgent job to everything saved: {seconds:.1f} s")
    wait_until(lambda: cluster.states(urgent).get(urgent) == "RUNNING", "urgent job")
    cluster.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=bad")
    try:
        assert cluster.wait_for([urgent]) == {urgent: "COMPLETED"}
        state, output = job.end()
    finally:
        cluster.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    assert state == "COMPLETED", output
    assert "restarts, on n1, n2" in output and "3 restarts, on n1\n" in output, output
    assert ", ranks 2 -> 1" in output
    plain = [f"run.root={tmp_path}", "run.name=local", f"data.root={data}", *SLOW[:2], "train.steps=60"]
    ended(launch("local", *plain))
    ours, local = losses(tmp_path), losses(tmp_path, "local")
    assert list(ours) == list(local) == list(range(1, 61))
    assert list(ours.values()) == pytest.approx(list(local.values()), rel=1e-5)
    on_two = [step for step in ours if step <= 26]
    assert [ours[step] for step in on_two] == [local[step] for step in on_two]


# Twenty seconds: a job starts, saves, and is started again.
def test_a_job_with_an_edited_recipe_does_not_start_over(cluster, data, tmp_path):
    recipe = tmp_path / "edited.yaml"
    recipe.write_text(RECIPE.read_text())
    overrides = [f"data.root={data}", *SLOW, "train.save_every=4", "run.replace=true"]
    job = Submitted(cluster, tmp_path, *overrides, recipe=recipe)
    job.reach(6)
    recipe.write_text(recipe.read_text().replace("steps: 44", "steps: 33"))
    assert cluster.run("scontrol", "requeue", job.id).returncode == 0
    state, output = job.end()
    assert state == "FAILED" and job.exit_status() == 2, output
    assert "holds another run (train.steps 44 -> 33): a job that SLURM starts again only resumes" in output
    assert list((tmp_path / "end-to-end" / "pretrain" / "checkpoints").glob("step-*"))
    assert not (tmp_path / "end-to-end" / "previous").exists()


def _print(capsys, text):
    with capsys.disabled():
        print(f"\n{text}", end="")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_signal_gives_status_75_and_an_invalid_request_2(cluster, data, tmp_path, capsys, name):
    overrides = [f"data.root={data}", *SLOW, "train.steps=600", "launch.slurm.train.requeues=0"]
    job = Submitted(cluster, tmp_path, *overrides)
    job.reach(3)
    cluster.run("scancel", f"--signal={name}", job.id)
    began = time.monotonic()
    state, output = job.end()
    took = time.monotonic() - began
    _print(capsys, f"from SIG{name} to the end of the job: {took:.1f} s")
    assert state == "FAILED" and job.exit_status() == 75
    assert "already queued again 0 times" in output
    assert len(list((tmp_path / "end-to-end" / "pretrain" / "checkpoints").glob("step-*"))) == 1
    with another_seed(tmp_path):
        again = Submitted(cluster, tmp_path, *overrides)
        state, output = again.end()
    assert state == "FAILED" and again.exit_status() == 2
    assert re.search(r"^error: .*seed", output, re.MULTILINE) and "back into the queue" not in output


@pytest.mark.slow
def test_a_chain_of_jobs_instead_of_requeueing(cluster, data, tmp_path):
    overrides = [f"data.root={data}", *SLOW, "train.steps=40", "launch.slurm.train.chain=4"]
    job = Submitted(cluster, tmp_path, *overrides)
    job.reach(5)
    cluster.run("scancel", "--signal=USR1", f"{job.id}_1")
    wait_until(lambda: not cluster.run("squeue", "--noheader", f"--jobs={job.id}").stdout, "end of the array")
    states, output = cluster.states(job.id), job.output()
    assert states.pop(f"{job.id}_1") == "FAILED" and states.pop(f"{job.id}_2") == "COMPLETED", output
    assert set(states.values()) == {"CANCELLED"}
    assert "resuming after step" in output and "finished, 40 steps" in output


@pytest.mark.slow
def test_two_stages_of_fine_tuning_run_in_one_job_that_is_requeued_in_the_second(cluster, tmp_path):
    """The second stage starts from the first on both nodes, and the losses are those of the same processes here."""
    recipe, root = tmp_path / "stages.yaml", tmp_path / "runs"
    settings = yaml.safe_load(RECIPE.read_text())
    stages = [{"name": "answers"}, {"name": "more", "epochs": 12}]
    settings["finetune"] = [settings["finetune"] | stage for stage in stages]
    recipe.write_text(yaml.safe_dump(settings))
    make_data(root, recipe)
    changes = ["train.precision=fp32", "train.save_every=4"]
    ended(launch("local", f"run.root={root}", *changes, recipe=recipe))
    alone = tmp_path / "alone"
    shutil.copytree(root, alone)
    ended(launch("local", f"run.root={alone}", *changes, recipe=recipe, verb="finetune"))
    spread = ["launch.nodes=2", "launch.processes=1"]
    job = Submitted(cluster, root, *changes, *spread, recipe=recipe, verb="finetune")
    second = root / "end-to-end" / "finetune" / "more" / "checkpoints"
    wait_until(lambda: list(second.glob("step-*/manifest.json")), f"a checkpoint\n{job.output()}")
    assert cluster.run("scontrol", "requeue", job.id).returncode == 0
    state, output = job.end()
    assert state == "COMPLETED", output
    assert output.count("resuming after step") == 1 and "1 restarts, on n1, n2" in output, output
    for name in ("answers", "more"):
        ours, local = (losses(folder, folder=f"finetune/{name}") for folder in (root, alone))
        assert len(ours) > 4 and ours == local


@pytest.mark.slow
def test_a_crash_after_new_steps_is_requeued(cluster, data, tmp_path):
    job = Submitted(cluster, tmp_path, f"data.root={data}", *SLOW, "train.steps=300", "train.save_every=4")
    job.reach(6)
    victim = _rank(cluster, 1)
    victim.kill()
    wait_until(lambda: "resuming after step" in job.output(), "resume")
    output = job.output()
    assert re.search(r"pretrain: rank 1 was killed by SIGKILL on n[12] \(by the kernel", output), output
    assert output.index("rank 1 was killed") < output.index("back into the queue")
    # Saved, since the ranks received the signal, but not queued again by us.
    before = len(steps(tmp_path))
    cluster.run("scancel", job.id)
    wait_until(lambda: job.state() == "CANCELLED", "canceled job")
    time.sleep(12)
    assert job.state() == "CANCELLED" and len(steps(tmp_path)) >= before
    assert job.output().count("back into the queue") == 1, job.output()


@pytest.mark.slow
def test_a_crash_before_anything_is_saved_is_not_requeued(cluster, data, tmp_path):
    job = Submitted(cluster, tmp_path, f"data.root={data}", *SLOW, "train.steps=300")
    job.reach(3)
    _rank(cluster, 0).kill()
    state, output = job.end()
    assert state == "FAILED" and "pretrain: rank 0 was killed by SIGKILL" in output, output
    assert job.exit_status() == 1
    assert "it failed without progress, so the job is not queued again" in output


def _rank(cluster, number):
    """The process of a rank."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("SLURM_CONF") == cluster.env()["SLURM_CONF"] and environment.get("RANK") == str(number):
            return process
    raise AssertionError(f"rank {number} is nowhere")


@pytest.mark.slow
def test_a_node_that_never_joins_is_named(cluster, data, tmp_path):
    """The prefix of the command, meant for containers, makes one node sleep."""
    hook = tmp_path / "hook.sh"
    hook.write_text('#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && exec sleep 300\nexec "$@"\n')
    hook.chmod(0o755)
    overrides = [f"data.root={data}", *SLOW, "train.steps=9", f"launch.slurm.train.container=[{hook}]"]
    job = Submitted(cluster, tmp_path, *overrides, "launch.join_seconds=6", "launch.grace_seconds=1")
    state, output = job.end(120)
    assert state == "FAILED"
    assert "1 of 2 nodes did not join within 6 s (launch.join_seconds): joined: n1; missing: n2" in output
    assert "failed without progress" in output


@pytest.mark.slow
def test_an_exception_is_shown_once_and_first(cluster, data, tmp_path):
    """The rank of the second node fails while it reads data; the later error of the first rank is not shown."""
    hook = tmp_path / "hook.sh"
    broken = "import sys; sys.modules['training.data.windows'] = None"
    (tmp_path / "sitecustomize.py").write_text(broken)
    hook.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" = n2 ] && export PYTHONPATH={tmp_path}:$PYTHONPATH\nexec "$@"\n')
    hook.chmod(0o755)
    job = Submitted(cluster, tmp_path, f"data.root={data}", *SLOW, f"launch.slurm.train.container=[{hook}]")
    state, output = job.end(120)
    assert state == "FAILED"
    assert re.search(r"pretrain: rank [01] on n2 failed first", output), output
    assert output.count("Traceback") == 1 and "training.data.windows" in output


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("launch.slurm.train.partition=nosuch", "launch.slurm.train.partition"),
        ("launch.slurm.partition=nosuch", "launch.slurm.partition"),
        ("launch.slurm.train.time=2-00:00:00", "launch.slurm.train.time"),
        ("launch.slurm.train.gpus=8", "launch.slurm.train.gpus"),
        ("launch.slurm.train.memory=1T", "launch.slurm.train.memory"),
        ("launch.nodes=4 train.global_batch_tokens=8192", "launch.nodes"),
    ],
)
def test_resources_that_the_site_lacks_are_named_by_key(cluster, data, tmp_path, override, key):
    words = [f"run.root={tmp_path}", f"data.root={data}", *SLOW, *override.split()]
    _, err = ended(launch("slurm", *words, env=cluster.env()), 2)
    (line,) = err.splitlines()
    assert line.startswith("error: sbatch refused the job pretrain: ") and line.endswith(f"(see {key})"), line


@pytest.mark.slow
def test_the_output_of_a_dry_run_works_in_a_shell(cluster, data, tmp_path):
    words = [f"run.root={tmp_path}", f"data.root={data}", *SLOW, "train.steps=6", "--dry-run"]
    script, _ = ended(launch("slurm", *words))
    assert not (tmp_path / "end-to-end").exists()
    done = subprocess.run(["bash"], input=script, env=cluster.env(), capture_output=True, text=True)
    (job,) = re.findall(r"pretrain job (\d+)", done.stdout)
    assert cluster.wait_for([job]) == {job: "COMPLETED"}
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_allocation_is_rejected_outside_a_job(tmp_path):
    argv = [sys.executable, "-m", "launch", "allocation", "pretrain", "--recipe", str(RECIPE), f"run.root={tmp_path}"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2 and "submit one with `launch slurm`" in done.stderr
