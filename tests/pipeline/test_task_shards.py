"""Several tasks of a data stage as concurrent processes, and which other commands they refuse."""

import contextlib
import json
import socket
import subprocess
import sys

import psutil
import pytest

from artefacts import lock
from configs.load import load_recipe
from pipeline.__main__ import main
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import RECIPE, digests, overrides, texts, write_jsonl
from tests.support.waiting import wait_until
from tokenizer.train import train

_RULES = ("data.clean.near_dedup.enabled=true", "data.clean.line_dedup_chars=40", "data.source.sample_bytes=250000")
_ARTEFACTS = ("documents", "tokenizer", "tokens")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Enough files for several parts, with exact and near duplicates."""
    folder = tmp_path_factory.mktemp("source")
    corpus = texts(500)
    corpus += corpus[::9] + [text.replace("a", "o", 1) for text in corpus[::11]]
    for number in range(6):
        write_jsonl(folder / f"{number}.jsonl", corpus[number::6])
    return folder


def _overrides(root, source):
    return overrides(root, "data.source.kind=jsonl", f"data.source.path={source}", *_RULES)


def _start(root, source, verb, *more):
    line = [sys.executable, "-m", "pipeline", verb, "--recipe", str(RECIPE), *_overrides(root, source), *more]
    return subprocess.Popen(line, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _run(root, source, verb, *more):
    """Run a command, and return its exit status and last line."""
    process = _start(root, source, verb, *more)
    _, output = process.communicate()
    assert "Traceback" not in output
    return process.returncode, output.strip().splitlines()[-1] if output.strip() else ""


def _tasks(root, source, verb):
    """Start three tasks of a verb together, and wait for them."""
    for process in [_start(root, source, verb, "--tasks", "3", "--task", str(task)) for task in range(3)]:
        _, output = process.communicate()
        assert process.returncode == 0, output


def _plain(root, source, verb):
    """Run the same command without tasks, in this process."""
    assert main([verb, "--recipe", str(RECIPE), *_overrides(root, source)]) == 0


def _artefacts(root):
    return {name: digests(root / "demo" / name) for name in _ARTEFACTS}


@pytest.fixture(scope="module")
def shared_and_single(tmp_path_factory, source):
    """Build a run by tasks, with plain commands in between, and by a single command. Returns both folders."""
    folder = tmp_path_factory.mktemp("runs")
    shared, single = folder / "shared", folder / "single"
    for verb in ("ingest", "dedup"):
        _tasks(shared, source, verb)
    _plain(shared, source, "dedup")
    _tasks(shared, source, "clean")
    _plain(shared, source, "clean")
    train(load_recipe(RECIPE, _overrides(shared, source)))
    _tasks(shared, source, "tokenize")
    _plain(shared, source, "tokenize")
    _plain(single, source, "run")
    return shared, single


def test_three_concurrent_tasks_write_the_same_bytes_as_one_command(shared_and_single):
    shared, single = shared_and_single
    artefacts = _artefacts(shared)
    assert artefacts == _artefacts(single)
    assert all("manifest.json" in files for files in artefacts.values())
    counts = json.loads((shared / "demo" / "documents" / "manifest.json").read_text())["counts"]
    assert len(counts["dropped"]) == 2 and counts["not_sampled"] and counts["documents"] > 250
    assert not list((shared / "demo").glob(".*.partial"))


@contextlib.contextmanager
def _sharing(root):
    """Hold the lock of the documents, like a running task."""
    folder = root / "demo" / "documents"
    with lock.share(folder, lambda: None):
        yield folder


def test_a_plain_command_is_rejected_while_tasks_run(source, tmp_path):
    with _sharing(tmp_path) as folder:
        status, output = _run(tmp_path, source, "clean")
    assert status == 2
    assert output == f"error: {folder} is being written by tasks of another command: wait for it or stop it"
    assert not folder.exists()


def test_a_task_of_another_recipe_is_rejected_while_tasks_run(source, tmp_path):
    one = ("ingest", "--tasks", "3", "--task")
    assert _run(tmp_path, source, *one, "0")[0] == 0
    begun = digests(tmp_path / "demo" / ".documents.partial")
    with _sharing(tmp_path) as folder:
        status, output = _run(tmp_path, source, *one, "1", "data.clean.min_chars=7")
        assert status == 2
        assert output == f"error: {folder}: tasks of another recipe or source are running: wait for them"
        assert digests(tmp_path / "demo" / ".documents.partial") == begun
        # A task of the same recipe may join.
        assert _run(tmp_path, source, *one, "1")[0] == 0


def test_the_second_of_two_concurrent_runs_is_rejected(source, tmp_path):
    first = _start(tmp_path, source, "run")
    holder = tmp_path / "demo" / ".documents.holder"
    wait_until(lambda: (holder.exists() and holder.read_text()) or first.poll() is not None, "holder of the lock")
    # It must not finish before the second command has tried.
    psutil.Process(first.pid).suspend()
    try:
        refused = _run(tmp_path, source, "run"), _run(tmp_path, source, "ingest", "--tasks", "2", "--task", "0")
    finally:
        first.kill()
        first.communicate()
    folder = tmp_path / "demo" / "documents"
    message = (
        f"error: {folder} is being written by process {first.pid} on {socket.gethostname()}: wait for it or stop it"
    )
    assert refused == ((2, message), (2, message))
