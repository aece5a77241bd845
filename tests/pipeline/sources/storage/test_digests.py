"""Changed sources are detected: by size and times, and by verify even if these are unchanged."""

import json
import os
import shutil
import threading

import pytest

from artefacts.stage import open_stage
from configs.run_layout import RunLayout
from pipeline.documents import input_fingerprints
from pipeline.documents import stage as documents
from pipeline.examples import reading
from pipeline.reports.verify import verify
from pipeline.sources.registry import open_sources
from pipeline.sources.storage import digests as module
from pipeline.sources.storage import files
from pipeline.sources.storage.digests import SourceDigests
from tests.support.pipeline import corpora
from tests.support.pipeline.corpora import of_jsonl, recipe, texts, write_jsonl

TEXTS = texts(40, seed=3)
#: A time in the past. A file that was just changed is never trusted.
PAST = (10**18, 10**18)


def settled(folder):
    """The files below a folder, with modification times in the past."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        os.utime(path, ns=PAST)
    return paths


def redact(path):
    """Change a byte in the middle, and restore the times."""
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=PAST)


@pytest.fixture
def opened(monkeypatch):
    """Record the names of the source files that are opened."""
    names = []
    whole = files.File.open
    monkeypatch.setattr(files.File, "open", lambda file, *size: names.append(file.name) or whole(file, *size))
    return names


def test_a_change_in_the_middle_of_a_large_file(tmp_path):
    path = tmp_path / "a.txt"
    path.touch()
    os.truncate(path, 80 << 20)
    os.utime(path, ns=PAST)
    before = SourceDigests(tmp_path / "documents").of("text: files", files.find(str(path), ()))
    redact(path)
    for trusted in (False, True):
        after = SourceDigests(tmp_path / "documents", trusted)
        assert after.of("text: files", files.find(str(path), ())) != before
        assert after.changed("text: files", before) == ["a.txt"]
        assert after.changed("text: files", "another") == after.changed("other: files", before) == []


def test_only_files_with_changed_metadata_are_hashed_again(tmp_path, opened):
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / f"{name}.txt").write_text(name * 99)
    settled(source)

    def again(trusted=True, path=source):
        opened.clear()
        digests = SourceDigests(tmp_path / "documents", trusted)
        now = digests.of("text: files", files.find(str(path), (".txt",)))
        return now, digests.changed("text: files", first or now)

    first = None
    first, _ = again()
    assert sorted(opened) == ["a.txt", "b.txt", "c.txt"]
    assert again() == (first, []) and not opened
    os.utime(source / "b.txt", ns=(PAST[0], PAST[1] + 1))
    assert again() == (first, []) and opened == ["b.txt"]
    assert again() == (first, []) and not opened
    shutil.copytree(source, tmp_path / "copy")
    assert again(path=tmp_path / "copy") == (first, []) and len(opened) == 3
    assert again() == (first, []) and len(opened) == 3
    assert again(trusted=False) == (first, []) and len(opened) == 3
    (tmp_path / ".documents.sources.json").write_text('{"text: files": {"a.txt": 1}}')
    assert again() == (first, []) and len(opened) == 3
    redact(source / "b.txt")
    (source / "c.txt").rename(source / "d.txt")
    other, changed = again()
    assert other != first and changed == ["b.txt", "c.txt", "d.txt"]
    assert sorted(opened) == ["b.txt", "d.txt"]


def test_a_file_changed_just_now_is_not_trusted(tmp_path, opened, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")
    monkeypatch.setattr(files.time, "time_ns", lambda: path.stat().st_mtime_ns)
    for _ in range(2):
        SourceDigests(tmp_path / "documents").of("text: files", files.find(str(path), ()))
    assert opened == ["a.txt", "a.txt"]


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("x")
    os.utime(path, ns=PAST)
    with monkeypatch.context() as patch:
        patch.setattr(files.File, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        before = SourceDigests(tmp_path / "documents").of("text: files", files.find(str(path), ()))
    assert SourceDigests(tmp_path / "documents").of("text: files", files.find(str(path), ())) != before


def test_tasks_that_start_together_hash_a_source_once(tmp_path, opened):
    path = tmp_path / "a.txt"
    path.write_text("x" * 999)
    os.utime(path, ns=PAST)
    fingerprints, start = [], threading.Barrier(6)

    def task():
        digests = SourceDigests(tmp_path / "documents")
        start.wait()
        fingerprints.append(digests.of("text: files", files.find(str(path), ())))

    tasks = [threading.Thread(target=task) for _ in range(6)]
    for thread in tasks:
        thread.start()
    for thread in tasks:
        thread.join()
    assert len(fingerprints) == 6 and len(set(fingerprints)) == 1 and opened == ["a.txt"]


def test_pieces_and_threads_change_nothing(tmp_path, monkeypatch):
    for size in (0, 1, 4096, 70_000):
        (tmp_path / f"{size}.txt").write_bytes(os.urandom(size))
    listed = files.find(str(tmp_path), (".txt",))
    monkeypatch.setattr(module, "_PIECE_BYTES", 1000)
    whole = module.fingerprint(listed)
    monkeypatch.setattr(module, "_THREADS", 1)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 77)
    assert module.fingerprint(listed) == whole


def test_a_large_file_behind_a_url_is_sampled_at_both_ends_and_between(monkeypatch):
    file = files.File("a", "memory://a", 100 << 20)
    pieces = list(module._pieces(file))
    assert pieces[0] == (0, 4096) and pieces[-1] == ((100 << 20) - 4096, 100 << 20) and len(pieces) == 16
    assert len(list(module._pieces(file._replace(path="/a")))) == 7


def _inputs(recipe, target, trusted=True):
    digests = SourceDigests(target, trusted)
    return input_fingerprints.current(recipe, open_sources(recipe), digests), digests


@pytest.mark.parametrize("kind", corpora.KINDS)
def test_every_kind_of_source(tmp_path, kind):
    keys = corpora.write(kind, TEXTS, tmp_path / "source")
    run_recipe = recipe(tmp_path, *(f"{key}={value}" for key, value in keys.items()))
    paths = settled(tmp_path / "source")
    before, _ = _inputs(run_recipe, tmp_path / "documents")
    last = max(paths, key=lambda path: path.stat().st_size)
    redact(last)
    for trusted in (False, True):
        after, digests = _inputs(run_recipe, tmp_path / "documents", trusted)
        assert after != before and last.name in input_fingerprints.changes(before, after, digests)


@pytest.mark.parametrize("harmed", ["a.txt", "targets.txt", "tests.txt"])
def test_targets_and_evaluation_texts(tmp_path, harmed):
    for name in ("a.txt", "targets.txt", "tests.txt"):
        (tmp_path / name).write_text("one\ntwo\n")
    path = tmp_path / "a.txt"
    run_recipe = recipe(
        tmp_path,
        "data.source.kind=parallel",
        f"data.source.path={path}",
        f"data.source.target_path={tmp_path / 'targets.txt'}",
        f"data.clean.decontaminate.path={tmp_path / 'tests.txt'}",
    )
    settled(tmp_path)
    before, _ = _inputs(run_recipe, tmp_path / "documents")
    redact(tmp_path / harmed)
    after, digests = _inputs(run_recipe, tmp_path / "documents")
    assert after != before and input_fingerprints.changes(before, after, digests).endswith(f": {harmed}")


def test_verify_and_a_new_start_name_the_file(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    for name in "abcde":
        write_jsonl(tmp_path / "source" / f"{name}.jsonl", [f"{name} {text}" for text in TEXTS[:5]])
    paths = settled(tmp_path / "source")
    recipe = of_jsonl(tmp_path, tmp_path / "source")
    documents.build(recipe)
    assert not verify(recipe, "r.yaml")[1]
    for path in paths[:4]:
        redact(path)
    (fault,) = verify(recipe, "r.yaml")[1]
    assert "the source has changed since (jsonl: a.jsonl, b.jsonl, c.jsonl and 1 more); repair:" in fault
    assert documents.build(recipe) is not None
    assert "the source has changed: jsonl: a.jsonl, b.jsonl, c.jsonl and 1 more" in capsys.readouterr().err
    assert not verify(recipe, "r.yaml")[1] and documents.build(recipe) is None
    record = json.loads((tmp_path / "demo" / ".documents.sources.json").read_text())
    assert list(record["jsonl: files"]) == [f"{name}.jsonl" for name in "abcde"]


def test_digests_of_incomplete_sources_are_not_cached(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    sources = f"{{a: {{kind: jsonl, path: {tmp_path}/a.jsonl}}, b: {{kind: jsonl, path: /nowhere}}}}"
    run_recipe = recipe(tmp_path, "data.source={}", f"data.sources={sources}")
    with pytest.raises(Exception, match=r"data.sources.b.path: /nowhere is neither"):
        documents.build(run_recipe)
    assert not (tmp_path / "demo").exists()


def test_examples(tmp_path):
    path = tmp_path / "a.jsonl"
    record = {"instruction": "Say it.", "output": "It."}
    path.write_text("".join(json.dumps(record | {"input": str(number)}) + "\n" for number in range(9)))
    os.utime(path, ns=PAST)
    options = ("finetune.examples.kind=files", f"finetune.examples.path={path}")
    run_recipe = recipe(tmp_path, *options)
    folder = RunLayout.of(run_recipe).examples_of("sft")
    inputs = reading.inputs(run_recipe.finetune[0].examples, SourceDigests(folder))
    with open_stage("examples", folder, {}, inputs) as stage:
        stage.publish({}, {})
    assert not verify(run_recipe, "r.yaml")[1]
    redact(path)
    (fault,) = verify(run_recipe, "r.yaml")[1]
    assert "the source has changed since (files: a.jsonl); repair: `make examples" in fault
    path.unlink()
    intact, faults = verify(run_recipe, "r.yaml")
    assert not faults and "not compared with its source" in intact[-1]
