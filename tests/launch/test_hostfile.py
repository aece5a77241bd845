"""DeepSpeed's launcher over a hostfile: two hosts by name, through pdsh and a real sshd on loopback."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from launch.plan import free_port
from tests.support.launch.runs import another_seed, ended, launch, losses, make_data, steps
from tests.support.launch.sshd import LoopbackSsh, missing
from tests.support.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=missing() or "")]


@pytest.fixture(scope="module")
def ssh():
    with LoopbackSsh() as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def overrides(data, tmp_path):
    """Overrides of a run over hosts a and b, one process on each; with words that need quoting in a shell."""
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1  # the first\nb slots=2\n\n")
    more = [
        "train.precision=fp32",
        "train.global_batch_tokens=4096",
        "launch.slurm.account=a 'b' \"c\" $HOME %n `d` {e,f} \\",
    ]
    where = [f"run.root={tmp_path}", f"data.root={data}", f"launch.hostfile={hosts}", "launch.rendezvous=127.0.0.1:0"]
    return [*where, "launch.nodes=2", "launch.processes=1", "train.steps=30", *more]


def _with_port(overrides):
    return [word.replace("127.0.0.1:0", f"127.0.0.1:{free_port()}") for word in overrides]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_reaches_the_hosts_and_the_run_resumes(ssh, overrides, data, tmp_path, number):
    """In between, a request fails that only a worker can reject: resuming from a different run's checkpoint."""
    first = launch("deepspeed", *_with_port(overrides), env=ssh.env())
    wait_until(lambda: len(steps(tmp_path)) > 2, "step")
    first.send_signal(number)
    _, err = ended(first, 75)
    assert "stopped, everything is saved" in err
    with another_seed(tmp_path):
        _, err = ended(launch("deepspeed", *_with_port(overrides), env=ssh.env()), 2)
    (line,) = (line for line in err.splitlines() if not line.startswith("["))
    assert line.startswith("error: ") and "seed" in line
    out, _ = ended(launch("deepspeed", *_with_port(overrides), env=ssh.env()))
    assert "resuming after step" in out and "finished, 30 steps" in out
    local = [f"run.root={tmp_path}", "run.name=local", f"data.root={data}", *overrides[6:]]
    ended(launch("local", *local))
    assert losses(tmp_path) == losses(tmp_path, "local")
    assert not list((tmp_path / "end-to-end").glob(".launch-*"))


@pytest.mark.slow
def test_a_dead_rank_ends_all_ranks(ssh, overrides, tmp_path):
    started = launch("deepspeed", *_with_port(overrides), env=ssh.env())
    wait_until(lambda: len(steps(tmp_path)) > 2, "step")
    mark = str(tmp_path / "end-to-end" / ".launch-")
    ranks = [p for p in psutil.process_iter() if _environment(p).get("MILLRACE_STATUS", "").startswith(mark)]
    workers = [p for p in ranks if "RANK" in _environment(p)]
    assert sorted(_environment(p)["RANK"] for p in workers) == ["0", "1"]
    next(p for p in workers if _environment(p)["RANK"] == "1").kill()
    out, err = ended(started, 1)
    assert "pretrain: rank 1 was killed by SIGKILL on b (by the kernel, if memory ran out); the end of " in err
    assert "Traceback" not in out
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.mark.slow
def test_the_output_of_a_dry_run_works_in_a_shell(ssh, overrides, tmp_path):
    line, _ = ended(launch("deepspeed", *_with_port(overrides), "--dry-run", env=ssh.env()))
    done = subprocess.run(["bash", "-c", line], cwd="/", env=ssh.env(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(losses(tmp_path)) == list(range(1, 31))
    recipe = (tmp_path / "end-to-end" / "pretrain" / "recipe.yaml").read_text()
    assert "$HOME %n `d` {e,f}" in recipe


@pytest.mark.slow
def test_a_host_that_does_not_answer_is_named(overrides, tmp_path):
    _, err = ended(launch("deepspeed", *overrides), 2)
    assert err.startswith("error: launch.hostfile: no answer over ssh within 30 s from a, b: `ssh HOST true` and")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file or directory"),
        ("a slots=1\n", "has 1 hosts, but launch.nodes is 2"),
        ("a slots=1\nb slots=0\n", "has 0 slots for b, but launch.processes is 1"),
        ("a slots=1\nb\n", "line 2: write HOST slots=N, not 'b'"),
    ],
)
def test_an_invalid_hostfile_gives_a_one_line_error(overrides, tmp_path, text, says):
    hosts = Path(tmp_path / "hosts")
    hosts.unlink() if text is None else hosts.write_text(text)
    _, err = ended(launch("deepspeed", *overrides), 2)
    assert err.startswith("error: launch.hostfile: ") and says in err and err.count("\n") == 1
