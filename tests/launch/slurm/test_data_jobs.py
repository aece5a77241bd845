"""The chain of data jobs: what is submitted, in what order, and how errors in SLURM or the recipe are handled."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from artefacts.errors import RequestError
from configs.load import load_recipe
from launch.__main__ import main
from launch.slurm.data_jobs import chain, steps
from launch.slurm.sbatch import submit_chain
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import RECIPE, texts, write_jsonl

_AWKWARD = """data.source.path=it's "a" {b} $HOME `c` *"""

_SBATCH = """\
#!/bin/sh
"exec" "{python}" "-ES" "$0" "$@"
import json, os, sys
from pathlib import Path
calls = Path({calls!r})
number = len(calls.read_text().splitlines()) + 1 if calls.exists() else 1
with calls.open("a") as log:
    print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], sys.stdin.read()]), file=log)
if os.path.basename(sys.argv[0]) == "sbatch":
    if number == int(os.environ.get("FAIL_AT", 0)):
        sys.exit(os.environ["WORDS"])
    print(f"{{100 + number}};north")
if os.path.basename(sys.argv[0]) == "squeue":
    print(os.environ["QUEUED"])
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Puts fake SLURM commands first in PATH; returns a function that lists their calls."""
    log, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "scancel", "squeue"):
        (folder / name).write_text(_SBATCH.format(python=sys.executable, calls=str(log)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _jobs(root, *more):
    overrides = [f"run.root={root}", *more]
    return chain(load_recipe(RECIPE, overrides), str(RECIPE), overrides)


def _dry_run(*overrides):
    argv = [sys.executable, "-m", "launch", "slurm", "data", "--dry-run", "--recipe", str(RECIPE), *overrides]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_trained_on_examples_needs_no_shards():
    jobs = steps(load_recipe(CHECKOUT / "configs" / "teaching" / "seq2seq-reverse.yaml"))
    assert [step.name for step in jobs] == ["ingest", "dedup", "verdicts", "clean", "publish-documents", "examples"]
    assert jobs[-1].commands == (("pipeline", "examples"), ("pipeline", "verify")) and not jobs[-1].shared


def test_arrays_share_a_stage_and_single_jobs_complete_it(tmp_path):
    jobs = _jobs(tmp_path, "launch.slurm.array_tasks=7", "launch.slurm.array_limit=3", "launch.slurm.cpus=2")
    before_tokens = ["ingest", "dedup", "verdicts", "clean", "publish-documents"]
    assert [job.name for job in jobs] == [*before_tokens, "tokenize", "publish-tokens"]
    for job, step in zip(jobs, steps(load_recipe(RECIPE, [])), strict=True):
        assert ("--array=0-6%3" in job.options) == step.shared
        assert {"--requeue", "--kill-on-invalid-dep=yes", "--cpus-per-task=2"} <= set(job.options)
        ids = "%A_%a" if step.shared else "%j"
        assert f"--output={tmp_path}/demo/logs/data-{step.name}-{ids}.out" in job.options
        lines = job.script.splitlines()
        assert lines[:2] == ["#!/bin/bash", "set -euo pipefail"]
        commands = [line for line in lines if " -m " in line]
        assert len(commands) == len(step.commands)
        for line, (package, verb) in zip(commands, step.commands, strict=True):
            share = ' --tasks 7 --task "$SLURM_ARRAY_TASK_ID"' if step.shared else ""
            assert line.startswith(f"{shlex.quote(sys.executable)} -m {package} {verb}{share} --recipe ")
            assert line.endswith(" data.workers=2")


@pytest.mark.parametrize("packing", ["windows", "best_fit"])
def test_the_last_job_packs_if_the_recipe_sets_it(tmp_path, packing):
    *before, last = _dry_run(f"run.root={tmp_path}", f"train.packing={packing}").split("sbatch ")
    verbs = re.findall(r" -m (\w+ \w+)", last)
    pack = ["pipeline pack"] if packing == "best_fit" else []
    assert verbs == ["pipeline tokenize", *pack, "pipeline verify"]
    assert "pipeline pack" not in "".join(before)


def test_an_override_reaches_the_command_unchanged(tmp_path):
    awkward = [_AWKWARD, "data.source.kind=jsonl", f"run.root={tmp_path}/a b%j"]
    for job in _jobs(tmp_path, *awkward):
        line = next(line for line in job.script.splitlines() if " -m " in line)
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, env={"SLURM_ARRAY_TASK_ID": "5"}
        ).stdout.split("\0")
        assert set(awkward) <= set(words)
        assert any(f"{tmp_path}/a b%%j/demo/logs/" in option for option in job.options)


def test_jobs_request_the_resources_in_the_recipe(tmp_path):
    job = _jobs(
        tmp_path,
        "launch.slurm.partition=big",
        "launch.slurm.account=us",
        "launch.slurm.qos=low",
        "launch.slurm.constraint=a&b",
        "launch.slurm.time=2-00:00:00",
        "launch.slurm.memory=null",
        "launch.slurm.options=[--nice=100, '--comment=two words']",
    )[0]
    options = ("partition=big", "account=us", "qos=low", "constraint=a&b", "time=2-00:00:00", "cpus-per-task=4")
    assert job.options[:8] == (*(f"--{option}" for option in options), "--nice=100", "--comment=two words")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("launch.slurm.time=90", "launch.slurm.time: '90' is not valid; examples: 24:00:00"),
        ("launch.slurm.options=[nice]", "launch.slurm.options: 'nice' is not an option"),
        ("launch.slurm.memory=8 GB", "launch.slurm.memory: '8 GB' is not valid; examples: 8G"),
        ("launch.slurm.array_tasks=0", "launch.slurm.array_tasks must be "),
    ],
)
def test_a_wrong_key_is_named(override, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        load_recipe(RECIPE, [override])


def test_the_slurm_section_does_not_change_the_run():
    changed = load_recipe(RECIPE, ["launch.slurm.partition=other", "launch.slurm.cpus=9"])
    assert changed.launch.slurm.identity() == load_recipe(RECIPE).launch.slurm.identity() == {"train": {}}


def test_a_dry_run_prints_a_script_that_submits_the_jobs(calls, tmp_path):
    overrides = [f"run.root={tmp_path}/runs", _AWKWARD, "data.source.kind=jsonl", "launch.slurm.array_tasks=3"]
    printed = _dry_run(*overrides)
    assert not calls() and not (tmp_path / "runs").exists()
    done = subprocess.run(["bash"], input=printed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "demo" / "logs").is_dir()
    by_shell = calls()
    _check_chain(by_shell, _jobs(tmp_path / "runs", *overrides))


def _check_chain(calls, jobs):
    assert [name for name, _, _ in calls] == ["sbatch"] * len(jobs)
    for number, ((_, argv, script), job) in enumerate(zip(calls, jobs, strict=True), 101):
        dependency = [f"--dependency=afterok:{number - 1}"] if number > 101 else []
        assert sorted(argv) == sorted(["--parsable", *job.options, *dependency])
        commands = [line.split(" -m ")[1].split(" --recipe ")[0] for line in script.splitlines() if " -m " in line]
        assert commands == [
            line.split(" -m ")[1].split(" --recipe ")[0] for line in job.script.splitlines() if " -m " in line
        ]


def test_each_job_depends_on_the_one_before(calls, tmp_path, capsys):
    jobs = _jobs(tmp_path)
    ids = submit_chain(jobs)
    assert ids == [str(101 + number) for number in range(len(jobs))]
    _check_chain(calls(), jobs)
    assert [script for _, _, script in calls()] == [job.script for job in jobs]
    assert capsys.readouterr().out.splitlines()[1] == "dedup             job 102"


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("sbatch: error: invalid partition specified: big\nsbatch: error: Batch job submission failed", "partition"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", "account"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "qos"),
        ("sbatch: error: Batch job submission failed: Requested time limit is invalid", "time"),
        ("sbatch: error: Batch job submission failed: Invalid job array specification", "array_tasks"),
        ("sbatch: unrecognized option '--nicee'", "options"),
        ("sbatch: error: Slurm controller not responding", None),
    ],
)
def test_a_rejected_job_cancels_those_before_it(calls, tmp_path, monkeypatch, words, key):
    monkeypatch.setenv("FAIL_AT", "3")
    monkeypatch.setenv("WORDS", words)
    with pytest.raises(RequestError) as raised:
        submit_chain(_jobs(tmp_path))
    assert [(name, argv) for name, argv, _ in calls()][3:] == [("scancel", ["101", "102"])]
    message = str(raised.value)
    assert message.startswith("sbatch refused the job verdicts: ") and message.endswith("; canceled: 101, 102")
    assert "\n" not in message and "sbatch: error" not in message
    assert (f"(see launch.slurm.{key})" in message) if key else "launch.slurm" not in message


def _submit(*overrides):
    return main(["slurm", "data", "--recipe", str(RECIPE), *overrides])


def test_valid_jobs_are_submitted_but_not_twice_at_a_time(calls, tmp_path, capsys, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", texts(20))
    overrides = [f"run.root={tmp_path}", "data.source.kind=jsonl", "data.source.sample_bytes=null"]
    overrides += [f"data.source.path={source}"]
    assert _submit(*overrides) == 0
    assert len(calls()) == len(capsys.readouterr().out.splitlines()) == 7
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"logs", ".slurm-jobs"}
    monkeypatch.setenv("QUEUED", "102\n102\n103")
    with pytest.raises(RequestError, match="its data jobs 102, 103 are not done: wait, or `scancel 102 103` first"):
        _submit(*overrides)
    assert "--jobs=101,102,103,104,105,106,107" in calls()[-1][1]


def test_a_missing_source_fails_before_anything_is_queued(calls, tmp_path):
    with pytest.raises(RequestError, match=r"nothing is submitted: .*/nowhere is neither a file nor a folder"):
        _submit(f"run.root={tmp_path}/runs", "data.source.kind=jsonl", f"data.source.path={tmp_path}/nowhere")
    assert not calls() and not (tmp_path / "runs").exists()


def test_an_unwritable_folder_fails_before_anything_is_queued(calls, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"data\.root: .*/file/data cannot be written: Not a directory"):
        _submit(f"run.root={tmp_path}/runs", f"data.root={tmp_path}/file/data")
    assert not calls() and not (tmp_path / "runs").exists()


def test_jobs_that_sbatch_rejects_leave_no_new_files(calls, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "1")
    monkeypatch.setenv("WORDS", "sbatch: error: invalid partition specified: big")
    source = write_jsonl(tmp_path / "a.jsonl", texts(20))
    (tmp_path / "data").mkdir()
    with pytest.raises(RequestError, match=r"see launch\.slurm\.partition"):
        _submit(
            f"run.root={tmp_path}/runs",
            f"data.root={tmp_path}/data",
            "data.source.kind=jsonl",
            "data.source.sample_bytes=null",
            f"data.source.path={source}",
        )
    assert not (tmp_path / "runs").exists() and not list((tmp_path / "data").iterdir())


def test_missing_slurm_gives_a_one_line_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="sbatch is not installed on this machine"):
        _submit(f"run.root={tmp_path}/runs")
    assert not Path(tmp_path / "runs").exists()


def test_a_dry_run_imports_no_torch_and_no_arrow():
    code = (
        "import sys; from launch.__main__ import main; "
        f"main(['slurm', 'data', '--dry-run', '--recipe', {str(RECIPE)!r}]); "
        "print([m for m in ('torch', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
