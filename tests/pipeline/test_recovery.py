"""A data stage that is killed at random or runs out of disk space writes the same bytes in the end."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from configs.load import load_recipe
from pipeline.reports.verify import verify
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import RECIPE, digests, overrides, texts, write, write_jsonl
from tests.support.waiting import PATIENCE

#: All rules that keep state between documents are enabled, so that all kinds of files are written.
_RULES = (
    "data.clean.near_dedup.enabled=true",
    "data.clean.line_dedup_chars=60",
    "data.clean.gopher_repetition.enabled=true",
    "data.source.sample_bytes=2500000",
    "data.tokens.shard_tokens=150000",
    "train.packing=best_fit",
    "train.context_length=128",
    "train.global_batch_tokens=1024",
    "finetune.max_length=128",
    "finetune.examples.kind=files",
    "finetune.examples.max_examples=null",
)
_STAGES = {
    "ingest": "documents",
    "dedup": "documents",
    "clean": "documents",
    "train": "tokenizer",
    "tokenize": "tokens",
    "pack": "packing",
    "examples": "examples",
}
#: Kills of each stage: some of them in every run of the tests, all of them in ``make test-recovery``.
_KILLS = 20


def _line(verb, root, source, *more):
    package = "tokenizer" if verb == "train" else "pipeline"
    chats = f"finetune.examples.path={source.with_name('instructions.jsonl')}"
    options = overrides(root, "data.source.kind=jsonl", f"data.source.path={source}", chats, *_RULES, *more)
    return [sys.executable, "-m", package, verb, "--recipe", str(RECIPE), *options]


def _run(verb, root, source, *more):
    done = subprocess.run(_line(verb, root, source, *more), cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, f"{verb}: {done.stderr}"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight files with exact and near duplicates, and instructions next to their folder."""
    folder = tmp_path_factory.mktemp("given") / "source"
    folder.mkdir()
    records = [{"instruction": f"Count to {n}.", "output": f"{n}, at last."} for n in range(3000)]
    folder.with_name("instructions.jsonl").write_text("\n".join(map(json.dumps, records)))
    corpus = texts(4000)
    corpus += [text.replace(".", "!", 1) for text in corpus[::9]] + corpus[::11]
    random.Random(1).shuffle(corpus)
    for number in range(8):
        write_jsonl(folder / f"{number}.jsonl", corpus[number::8])
    return folder


def _start(verb, root, source, *more):
    return subprocess.Popen(
        _line(verb, root, source, *more),
        cwd=CHECKOUT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _written(root, verb, since):
    """Files that the stage has written since then and not published, with their times."""
    paths = set()
    try:
        for path in (root / "demo" / f".{_STAGES[verb]}.partial").rglob("*"):
            if (when := path.stat().st_mtime_ns) > since:
                paths.add((path, when))
    except FileNotFoundError:  # published, or a file was renamed meanwhile
        return set()
    return paths


def _until_written(process, root, verb, since, times=1):
    """Wait until the stage has written this many times or has exited. Returns how often it wrote."""
    before, seen = set(), 0
    while seen < times and process.poll() is None:
        now = _written(root, verb, since)
        seen += bool(now - before)
        before = now
        time.sleep(0.002)
    return seen


def _uninterrupted(verb, root, source, *more):
    """Run a stage to its end, and return how often it wrote."""
    since = time.time_ns()
    process = _start(verb, root, source, *more)
    seen = _until_written(process, root, verb, since, sys.maxsize)
    assert process.wait() == 0, verb
    return seen


@pytest.fixture(scope="module")
def states(tmp_path_factory, source):
    """The folder of the run before each stage and at the end, and how often each stage wrote."""
    folder = tmp_path_factory.mktemp("states")
    root = folder / "run"
    writes = {}
    for verb in _STAGES:
        if root.exists():
            shutil.copytree(root, folder / f"before-{verb}")
        writes[verb] = _uninterrupted(verb, root, source)
    return folder, writes


def _artefacts(root):
    return {name: digest for name, digest in digests(root / "demo").items() if not name.startswith(".")}


def _killed(verb, root, source, random_, writes, *more):
    """Start a stage and kill it, usually after a write. Returns whether it was killed between that and publishing."""
    since = time.time_ns()
    process = _start(verb, root, source, f"data.workers={random_.choice((1, 2, 3))}", *more)
    if random_.random() < 0.9:
        # Kill half of them at the first write, which is seen on any machine.
        _until_written(process, root, verb, since, random_.choice((1, random_.randint(1, writes))))
    else:
        time.sleep(random_.random())
    if process.poll() is not None:
        return False
    workers = psutil.Process(process.pid).children(recursive=True)
    hit = bool(_written(root, verb, since))
    if random_.random() < 0.5:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert not alive, "workers outlived the killed stage"
    return hit


def _trial(verb, states, source, root, random_, kills):
    """Kill a stage ``kills`` times in a row, let it finish and compare. Returns how many kills hit it at work."""
    folder, writes = states
    before = folder / f"before-{verb}"
    if before.exists():
        shutil.copytree(before, root)
    else:
        root.mkdir()
    hits = sum(_killed(verb, root, source, random_, writes[verb]) for _ in range(kills))
    left = list(_STAGES)[list(_STAGES).index(verb) :]
    for process in left:
        if process == verb or _STAGES[process] == _STAGES[verb]:
            _run(process, root, source, "data.workers=2")
    wanted = {name: digest for name, digest in _artefacts(folder / "run").items() if name.startswith(_STAGES[verb])}
    artefacts = {name: digest for name, digest in _artefacts(root).items() if name.startswith(_STAGES[verb])}
    assert artefacts == wanted
    assert not (root / "demo" / f".{_STAGES[verb]}.partial").exists()
    shutil.rmtree(root)
    return hits


@pytest.mark.parametrize("verb", ["ingest", "clean", "tokenize"])
def test_killed_and_started_again(verb, states, source, tmp_path):
    random_ = random.Random(f"{verb} once")
    # Some kills come before the first write, or too late.
    assert any(_trial(verb, states, source, tmp_path / "run", random_, 2) for _ in range(5))


@pytest.mark.slow
@pytest.mark.parametrize("verb", _STAGES)
def test_killed_at_twenty_moments(verb, states, source, tmp_path):
    random_ = random.Random(verb)
    hits = kills = 0
    while kills < _KILLS or hits < 15:
        count = random_.randint(1, 4)
        hits += _trial(verb, states, source, tmp_path / "run", random_, count)
        kills += count
        assert kills < 5 * _KILLS, "the stage is over too soon to be hit at work"


@pytest.mark.slow
def test_a_solid_archive_killed(source, tmp_path):
    """The parts come from one stream, which every start reads from the beginning."""
    corpus = [json.loads(line)["text"] for path in sorted(source.glob("*.jsonl")) for line in path.open()]
    more = [f"{key}={value}" for key, value in write("openwebtext-tar-xz", corpus, tmp_path / "archive").items()]
    writes = _uninterrupted("clean", tmp_path / "whole", source, *more)
    random_ = random.Random("solid")
    hits = kills = 0
    while kills < _KILLS or hits < 10:
        for _ in range(random_.randint(1, 4)):
            hits += _killed("clean", tmp_path / "run", source, random_, writes, *more)
            kills += 1
        _run("clean", tmp_path / "run", source, "data.workers=2", *more)
        assert _artefacts(tmp_path / "run") == _artefacts(tmp_path / "whole")
        shutil.rmtree(tmp_path / "run")
        assert kills < 5 * _KILLS


def _tasks(verb, root, source):
    return [_start(verb, root, source, "--tasks", "3", "--task", str(task)) for task in range(3)]


def _kill_some(tasks, root, verb, random_, since):
    """Kill some tasks, each after a write; returns how many of them were still running."""
    hits = 0
    for process in random_.sample(tasks, random_.randint(1, len(tasks))):
        _until_written(process, root, verb, since, random_.randint(1, 2))
        if process.poll() is None:
            hits += 1
            os.killpg(process.pid, signal.SIGKILL)
    for process in tasks:
        assert process.wait() in (0, -signal.SIGKILL)
    return hits


@pytest.mark.slow
def test_tasks_killed(states, source, tmp_path):
    folder, _ = states
    random_ = random.Random("tasks")
    root = tmp_path / "run"
    for verb in ("ingest", "dedup", "clean", "train", "tokenize"):
        if verb == "train":
            _run(verb, root, source)
            continue
        hits = sum(_kill_some(_tasks(verb, root, source), root, verb, random_, time.time_ns()) for _ in range(7))
        assert hits >= 5, verb
        assert [process.wait() for process in _tasks(verb, root, source)] == [0, 0, 0]
        if verb != "ingest":
            _run(verb, root, source)
    wanted = {name: digest for name, digest in _artefacts(folder / "run").items() if not name.startswith(("p", "e"))}
    assert _artefacts(root) == wanted


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; ``grow(MB)`` sets its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def grow(size, *more):
        options = ",".join([*more, f"size={size}m"])
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode

    if grow(1):
        pytest.skip("mounting a file system takes root")
    yield folder, lambda size: grow(size, "remount")
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_loses_nothing(states, source, small_disk):
    folder, grow = small_disk
    root = folder / "run"
    full = 0
    for size in (2, 6, 200):
        grow(size)
        for verb in _STAGES:
            line = _line(verb, root, source, "data.workers=2")
            done = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True)
            if done.returncode:
                break
        else:
            break
        message = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert done.returncode == 1 and len(message) == 1 and "the disk is full" in message[0], done.stderr
        assert "Traceback" not in done.stderr
        full += 1
    assert full == 2
    assert _artefacts(root) == _artefacts(states[0] / "run")


def _kinds(root):
    """A file of every kind of every artefact."""
    kinds = {}
    for path in sorted((root / "demo").rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            kinds.setdefault((path.parent.name, path.name.split("-")[0], path.suffix), path)
    assert len(kinds) >= 13, kinds
    return kinds.values()


def test_verify_finds_a_flipped_bit_in_every_kind_of_file(states, source, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(states[0] / "run", root)
    recipe = load_recipe(RECIPE, _line("verify", root, source)[6:])
    assert verify(recipe, "r.yaml")[1] == []
    for path in _kinds(root):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        faults = verify(recipe, "r.yaml")[1]
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        if path.name == "manifest.json":
            # A damaged manifest is reported as damaged, or as another artefact than the input of others.
            assert faults, path
        else:
            assert len(faults) == 1 and str(path) in faults[0] and "repair: " in faults[0], (path, faults)
    assert verify(recipe, "r.yaml")[1] == []


def test_verify_finds_a_cut_and_a_missing_file_of_every_kind(states, source, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(states[0] / "run", root)
    recipe = load_recipe(RECIPE, _line("verify", root, source)[6:])
    for path in _kinds(root):
        if path.name == "manifest.json":
            continue
        content = path.read_bytes()
        for size in (len(content) - 1, 0, None):
            path.unlink() if size is None else path.write_bytes(content[:size])
            (fault,) = verify(recipe, "r.yaml")[1]
            assert str(path) in fault and re.search("repair: (rm -r|mv) ", fault), fault
        path.write_bytes(content)
    assert verify(recipe, "r.yaml")[1] == []


def test_verify_says_when_the_source_has_changed(states, source, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(states[0] / "run", root)
    moved = tmp_path / "source"
    shutil.copytree(source, moved)
    recipe = load_recipe(RECIPE, _line("verify", root, moved)[6:])
    assert verify(recipe, "r.yaml")[1] == []
    last = moved / "7.jsonl"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    (fault,) = verify(recipe, "r.yaml")[1]
    assert "stale: the source has changed since" in fault and "make data" in fault
    shutil.rmtree(moved)
    intact, faults = verify(recipe, "r.yaml")
    assert not faults and any("not compared with its source" in line for line in intact)
