"""Exit statuses of every launcher on this host. SLURM's are tested in ``slurm/test_training_job.py``."""

import contextlib
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from artefacts.worker_status import node_name
from launch.plan import free_port
from tests.support.launch.runs import another_seed, ended, launch, losses, make_data, shared_memory, steps
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.apart]

#: `make test` runs one of them; the others are slow.
_KINDS = ["deepspeed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("local", "torchrun"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def _logs(root: Path) -> Path:
    return root / "end-to-end" / "logs" / "pretrain"


def _ranks(started: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """The processes of a launch by rank."""
    ranks = {}
    for process in psutil.Process(started.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # a process of a compiler that has ended
            if "training" in process.cmdline() and (rank := process.environ().get("RANK")):
                ranks[rank] = process
    return ranks


# Twenty seconds: two real starts, with a launcher, its agent and ranks.
@pytest.mark.parametrize("kind", _KINDS)
def test_a_run_resumes_after_a_signal_and_finishes(kind: str, data: Path, tmp_path: Path) -> None:
    """SIGUSR1 gives 75, a second launch meanwhile 2, and the resumed run 0, also if repeated. Output is kept."""
    overrides = [f"run.root={tmp_path}", f"data.root={data}", "train.precision=fp32", "train.steps=40"]
    shared = shared_memory()
    first = launch(kind, *overrides)
    wait_until(lambda: steps(tmp_path), "step")
    # The first launch must not finish before the second one has looked, nor before the signal.
    ranks = _ranks(first).values()
    for rank in ranks:
        rank.suspend()
    assert shared_memory() <= shared, "a killed run would leave it behind"
    err = ended(launch(kind, *overrides), 2)[1]
    named = f"process {first.pid} on {socket.gethostname()}: wait for it or stop it"
    assert f"end-to-end: pretrain is being launched by {named}" in err
    first.send_signal(signal.SIGUSR1)
    for rank in ranks:
        rank.resume()
    out, err = ended(first, 75)
    assert "stopped, everything is saved" in err and "Traceback" not in out + err
    out, _ = ended(launch(kind, *overrides))
    assert "resuming after step" in out and "finished, 40 steps" in out
    assert list(losses(tmp_path)) == list(range(1, 41))
    assert "up to date" in ended(launch(kind, *overrides))[0]
    for rank in (0, 1):
        log = (_logs(tmp_path) / f"rank-{rank:05d}.txt").read_text()
        assert log.count("--- ") == 2 and f", rank {rank}\n" in log
    assert "finished" in (_logs(tmp_path) / "rank-00000.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "torchrun", "deepspeed"])
def test_sigterm_gives_75_and_an_invalid_request_2(kind: str, data: Path, tmp_path: Path) -> None:
    overrides = [f"run.root={tmp_path}", f"data.root={data}", "train.steps=100000"]
    started = launch(kind, *overrides)
    wait_until(lambda: len(steps(tmp_path)) > 1, "step")
    started.send_signal(signal.SIGTERM)
    ended(started, 75)
    with another_seed(tmp_path):
        _, err = ended(launch(kind, *overrides), 2)
    lines = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1 and "seed" in lines[0], err


@pytest.mark.parametrize("kind", _KINDS)
def test_the_first_rank_that_fails_is_shown_first(kind: str, data: Path, tmp_path: Path) -> None:
    """A killed rank gives status 1. Its output is shown, and rank 0's error about the lost connection is not."""
    started = launch(kind, f"run.root={tmp_path}", f"data.root={data}", "train.steps=100000")
    wait_until(lambda: len(steps(tmp_path)) > 1, "step")
    _ranks(started)["1"].kill()
    out, err = ended(started, 1)
    # DeepSpeed's launcher reports the signal unless the other rank fails within the same second.
    host = re.escape(node_name())
    how = rf"(was killed by SIGKILL|exited without reporting an error) on {host} \((killed )?by the kernel"
    assert re.search(rf"^pretrain: rank 1 {how}", err, re.MULTILINE), err
    assert re.search(r"^if memory ran out: set .*train\.micro_batch=", err, re.MULTILINE), err
    assert "Traceback" not in out


@pytest.mark.parametrize("kind", _KINDS)
def test_an_exception_gives_status_1_and_is_shown(kind: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('RANK') == '1':\n    sys.modules['training.data.windows'] = None\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    started = launch(kind, f"run.root={tmp_path}", f"data.root={data}", env={**os.environ, "PYTHONPATH": path})
    out, err = ended(started, 1)
    assert f"pretrain: rank 1 on {node_name()} failed first" in err
    assert "import of training.data.windows halted" in err and (out + err).count("Traceback") == 1


# Fifteen seconds each, for real starts.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deepspeed", "torchrun"])
def test_the_output_of_a_dry_run_works_in_a_shell(kind: str, data: Path, tmp_path: Path) -> None:
    words = [
        f"run.root={tmp_path}",
        f"data.root={data}",
        "train.steps=6",
        "launch.slurm.account=a 'b' $HOME %n {c,d} \\",
    ]
    line, _ = ended(launch(kind, *words, "--dry-run"))
    assert not (tmp_path / "end-to-end").exists()
    done = subprocess.run(["bash", "-c", line], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_taken_port_is_named(data: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [f"run.root={tmp_path}", f"data.root={data}", f"launch.rendezvous=127.0.0.1:{port}", "launch.nodes=2"]
        _, err = ended(launch("torchrun", *words, "launch.processes=1"), 2)
    user = f"process {os.getpid()}"
    assert err == f"error: launch.rendezvous: port {port} on 127.0.0.1 is in use by {user}: choose another port\n"


def test_a_node_that_does_not_join_ends_the_wait(data: Path, tmp_path: Path) -> None:
    where = f"launch.rendezvous=127.0.0.1:{free_port()}"
    words = [f"run.root={tmp_path}", f"data.root={data}", where, "launch.nodes=2"]
    _, err = ended(launch("torchrun", *words, "launch.processes=1", "launch.join_seconds=4"), 1)
    message = f"pretrain: 1 of 2 nodes did not join within 4 s (launch.join_seconds): joined: {node_name()}\n"
    assert err.endswith(message), err


def test_a_disk_too_small_for_a_checkpoint_is_rejected_before_the_start(data: Path, tmp_path: Path) -> None:
    """No checkpoint of a model of 60 billion parameters fits on this disk."""
    words = [
        f"run.root={tmp_path}",
        f"data.root={data}",
        "model.hidden_size=65536",
        "model.moe_intermediate_size=65536",
    ]
    _, err = ended(launch("local", *words), 2)
    assert "a checkpoint takes" in err and "free some space, or set run.root to another disk" in err
    assert not (tmp_path / "end-to-end" / "pretrain").exists()
