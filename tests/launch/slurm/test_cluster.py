"""The data stages as jobs of a real SLURM cluster on this host, compared with the same stages in one process."""

import json
import re
import subprocess
import sys

import pytest

from artefacts.errors import RequestError
from configs.load import load_recipe
from launch.slurm.data_jobs import chain
from launch.slurm.sbatch import submit_chain
from tests.support.launch.slurm_cluster import missing
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import RECIPE, digests, texts, write_jsonl
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

_ARTEFACTS = ("documents", "tokenizer", "tokens")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Overrides of a corpus of three sources, the last one larger, with exact and near duplicates among them."""
    folder = tmp_path_factory.mktemp('the corpus\'s "files"')
    originals = texts(6000)
    near = [text.replace("a", "o", 1) for text in originals[50:70]]
    parts = {"a": originals[:250], "b": originals[200:400] + near, "c": originals[390:]}
    sources = ", ".join(
        f"{name}: {{kind: jsonl, path: {json.dumps(str(write_jsonl(folder / f'{name}.jsonl', documents)))}}}"
        for name, documents in parts.items()
    )
    return [
        "data.source={}",
        f"data.sources={{{sources}}}",
        "data.clean.near_dedup.enabled=true",
        "data.clean.line_dedup_chars=30",
        "data.tokens.validation_fraction=0.05",
        "tokenizer.vocab_size=400",
    ]


def _run(module, *arguments, env=None):
    argv = [sys.executable, "-m", *module.split(), "--recipe", str(RECIPE), *arguments]
    done = subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_nodes_run_one_job_together(cluster, tmp_path):
    command = "srun --label bash -c 'echo \"$SLURMD_NODENAME of $SLURM_NNODES\"'"
    options = ("--parsable", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/out")
    job = cluster.run("sbatch", *options, f"--wrap={command}").stdout.strip()
    assert cluster.wait_for([job]) == {job: "COMPLETED"}
    assert sorted((tmp_path / "out").read_text().splitlines()) == ["0: n1 of 2", "1: n2 of 2"]


def test_jobs_write_the_same_bytes_as_one_process(cluster, corpus, tmp_path):
    """One array task is interrupted between its two parts and queued again."""
    slurm = ["launch.slurm.array_tasks=2", "launch.slurm.cpus=1", "launch.slurm.memory=2G", "launch.slurm.time=0:10:00"]
    root = tmp_path / "shared 50%j"
    printed = _run("launch slurm data", *corpus, *slurm, f"run.root={root}", env=cluster.env())
    jobs = {line.split()[0]: line.split()[2] for line in printed.splitlines()}
    task = f"{jobs['ingest']}_0"
    wait_until(lambda: list(root.glob("demo/.documents.partial/scratch/*/000000.json")), "first part")
    assert cluster.run("scontrol", "requeue", task).returncode == 0
    again = [sys.executable, "-m", "launch", "slurm", "data", "--recipe", str(RECIPE), *corpus, f"run.root={root}"]
    refused = subprocess.run(again, cwd=CHECKOUT, env=cluster.env(), capture_output=True, text=True)
    assert refused.returncode == 2 and f"its data jobs {', '.join(jobs.values())} are not done" in refused.stderr

    _run("pipeline run", *corpus, "data.workers=1", f"run.root={tmp_path / 'alone'}")
    states = cluster.wait_for([*jobs.values()])
    logs = {path.name: path.read_text() for path in (root / "demo" / "logs").iterdir()}
    assert set(states.values()) == {"COMPLETED"} and len(states) == 4 * 2 + 3, logs
    assert "DUE TO JOB REQUEUE" in logs[f"data-ingest-{task}.out"]
    assert "duplicates are resolved" in logs[f"data-verdicts-{jobs['verdicts']}.out"]
    for name in _ARTEFACTS:
        by_jobs = digests(root / "demo" / name)
        assert by_jobs and by_jobs == digests(tmp_path / "alone" / "demo" / name), name


def test_a_failed_job_cancels_the_jobs_after_it(cluster, corpus, tmp_path):
    """The check before submission cannot predict this failure: cleaning drops every document."""
    slurm = ["launch.slurm.array_tasks=2", "launch.slurm.cpus=1", "launch.slurm.memory=1G"]
    more = ["data.clean.min_chars=90000", f"run.root={tmp_path}"]
    printed = _run("launch slurm data", *corpus, *slurm, *more, env=cluster.env())
    jobs = {line.split()[0]: line.split()[2] for line in printed.splitlines()}
    states = cluster.wait_for([*jobs.values()])
    assert states[jobs["verdicts"]] == "FAILED"
    assert states[jobs["publish-documents"]] == states[jobs["publish-tokens"]] == "CANCELLED"
    log = (tmp_path / "demo" / "logs" / f"data-verdicts-{jobs['verdicts']}.out").read_text()
    assert "no document is left after cleaning" in log.splitlines()[-1]


def _jobs(root, *more):
    overrides = [f"run.root={root}", "launch.slurm.cpus=1", "launch.slurm.memory=1G", *more]
    return chain(load_recipe(RECIPE, overrides), str(RECIPE), overrides)


def _refusal(cluster, jobs):
    """Return the message when sbatch rejects one of several jobs, and check that none stays in the queue."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", cluster.env()["SLURM_CONF"])
        with pytest.raises(RequestError) as raised:
            submit_chain(jobs)
    assert not cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING").stdout.strip()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partition", "nosuch"),
        ("time", "2-00:00:00"),
        ("constraint", "nosuch"),
        ("array_tasks", "100000"),
        ("cpus", "3"),
        ("memory", "900G"),
        ("options", "[--nicee]"),
    ],
)
def test_a_resource_that_slurm_rejects_is_reported_with_its_key(cluster, tmp_path, key, value):
    message = _refusal(cluster, _jobs(tmp_path, f"launch.slurm.{key}={value}"))
    assert message.startswith("sbatch refused the job ingest: ") and message.endswith(f"(see launch.slurm.{key})")


def test_a_rejected_job_in_the_middle_leaves_none_queued(cluster, tmp_path):
    jobs = _jobs(tmp_path)
    jobs[0] = jobs[0]._replace(options=(*jobs[0].options, "--hold"))
    jobs[3] = jobs[3]._replace(options=(*jobs[3].options, "--partition=nosuch"))
    assert re.search(r"the job clean: .*nosuch.* \(see launch\.slurm\.partition\); canceled: ", _refusal(cluster, jobs))
