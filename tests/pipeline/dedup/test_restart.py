"""The result depends only on the documents, and not on parts, tasks, workers, or when a run was killed."""

import itertools
import random
import shutil
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow
import pytest

from artefacts.errors import RequestError
from pipeline import dedup
from pipeline.dedup import verdicts
from tests.support.pipeline import corpora, dedup_corpus

KEYS = dedup_corpus.section(exact=True, lines=20, near=True)


@pytest.fixture(scope="module")
def texts():
    """300 documents: originals, near copies, copies, lines from other documents, and some that have no words."""
    rng = random.Random(5)
    originals, copies, _ = dedup_corpus.planted(120, seed=9)
    more = [f"{text}\n{rng.choice(originals).split(chr(10))[3]}" for text in rng.sample(originals, 30)]
    every = [*originals, *copies, *more, *rng.sample(originals, 25), "", "..", "", "..", "a"]
    rng.shuffle(every)
    return every


@pytest.fixture(scope="module")
def expected(texts, tmp_path_factory):
    verdict = dedup_corpus.decide(tmp_path_factory.mktemp("whole"), [texts], KEYS)
    assert {*verdict[0]} == {dedup.KEPT, dedup.EXACT, dedup.NEAR} and verdict[1]
    return verdict


@pytest.mark.parametrize("places", [[150], [0, 1, 2, 299], [10, 10, 50, 100, 200, 250]])
@pytest.mark.parametrize("max_bytes", [dedup_corpus.TINY, 20_000])
def test_parts_and_tasks_change_nothing(texts, expected, tmp_path, places, max_bytes):
    assert dedup_corpus.decide(tmp_path, dedup_corpus.cut(texts, places), KEYS, max_bytes) == expected


def test_batches_of_a_part_change_nothing(texts, tmp_path):
    dedup_corpus.write(tmp_path / "whole", 0, texts, KEYS)
    writer = dedup.KeyWriter(tmp_path / "batches", 0, KEYS)
    for batch in dedup_corpus.cut(texts, [1, 1, 90, 200]):
        chunks = pyarrow.chunked_array([pyarrow.array(one, pyarrow.string()) for one in dedup_corpus.cut(batch, [3])])
        writer.add(chunks, dedup_corpus.digests(batch))
    writer.finish()
    assert corpora.digests(tmp_path / "whole") == corpora.digests(tmp_path / "batches")


def test_tasks_cover_all_keys_within_the_memory_limit(texts, tmp_path):
    parts = dedup_corpus.cut(texts, [100, 200])
    for number, part in enumerate(parts):
        dedup_corpus.write(tmp_path, number, part, KEYS)
    tasks = dedup.plan(tmp_path, KEYS, 1000)
    assert len(tasks) > 50
    assert {task.kind for task in tasks} == {"documents", "bands"}
    for kind in ("documents", "bands"):
        ends = [(task.begin, task.end) for task in tasks if task.kind == kind]
        assert ends[0][0] == 0 and ends[-1][1] == 4096
        assert all(one[1] == other[0] for one, other in itertools.pairwise(ends))
    assert tasks == dedup.plan(tmp_path, KEYS, 1000)


def _reduce(job):
    dedup.reduce(*job)


def test_workers_change_nothing(texts, tmp_path):
    """Run tasks in another order, in several processes, some of them twice."""
    for name in ("one", "many"):
        for number, part in enumerate(dedup_corpus.cut(texts, [100, 200])):
            dedup_corpus.write(tmp_path / name, number, part, KEYS)
    dedup_corpus.finish(tmp_path / "one", KEYS, 5000)
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        for plan in (dedup.plan, dedup.plan_lines):
            jobs = [(tmp_path / "many", KEYS, task, 5000) for task in plan(tmp_path / "many", KEYS, 5000)]
            list(pool.map(_reduce, [*reversed(jobs), *jobs]))
            dedup.resolve(tmp_path / "many", KEYS)
    assert corpora.digests(tmp_path / "one") == corpora.digests(tmp_path / "many")


def test_any_state_after_a_kill_is_resumed(texts, tmp_path):
    parts = dedup_corpus.cut(texts, [100, 200])
    dedup_corpus.decide(tmp_path / "whole", parts, KEYS, 5000)
    whole = corpora.digests(tmp_path / "whole")
    results = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "results").iterdir())
    rng = random.Random(2)
    for trial in range(6):
        folder = tmp_path / str(trial)
        shutil.copytree(tmp_path / "whole", folder)
        gone = rng.sample(results, rng.randint(1, len(results)))
        if rng.random() < 0.7:
            (folder / "verdicts.arrays").unlink()
        for name in gone:
            (folder / name).unlink()
            (folder / name).with_name(f".{name.name}.ab12.partial").write_bytes(b"torn")
        dedup_corpus.finish(folder, KEYS, 5000)
        for torn in folder.rglob(".*.partial"):
            torn.unlink()
        assert corpora.digests(folder) == whole


def test_another_size_of_tasks_after_a_kill(texts, expected, tmp_path):
    parts = dedup_corpus.cut(texts, [100, 200])
    for number, part in enumerate(parts):
        dedup_corpus.write(tmp_path, number, part, KEYS)
    for task in dedup.plan(tmp_path, KEYS, 3000)[::2]:
        dedup.reduce(tmp_path, KEYS, task)
    dedup_corpus.finish(tmp_path, KEYS, 7000)
    assert dedup_corpus.verdicts(tmp_path, KEYS, parts) == expected


def test_arrays_over_all_documents_may_be_stored_in_files(texts, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "_IN_MEMORY", 0)
    assert dedup_corpus.decide(tmp_path, dedup_corpus.cut(texts, [100]), KEYS) == expected
    assert not list(tmp_path.glob(".*"))


def test_no_documents_at_all(tmp_path):
    assert dedup_corpus.decide(tmp_path / "a", [[], []], KEYS) == ([], [])
    assert dedup_corpus.decide(tmp_path / "b", [], KEYS) == ([], [])


def test_one_key_of_all_documents_is_read_in_pieces(tmp_path):
    """A task of one key holds the keys of a few parts at a time."""
    keys = dedup_corpus.section(exact=True)
    count, parts = 20_000, 12
    digest = np.full(count, b"0123456789abcdef", "S16")
    for number in range(parts):
        writer = dedup.KeyWriter(tmp_path, number, keys)
        writer.add(pyarrow.array(["x"] * count), digest)
        writer.finish()
    tasks = [task for task in dedup.plan(tmp_path, keys, 1 << 20) if task.begin <= 0x303 < task.end]
    peaks = []
    for max_bytes in (1 << 19, 1 << 30):
        tracemalloc.start()
        dedup.reduce(tmp_path, keys, tasks[0], max_bytes)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        next((tmp_path / "results").iterdir()).unlink()
    assert peaks[0] < peaks[1] / 2


def test_damage_is_named(texts, tmp_path):
    dedup_corpus.write(tmp_path, 0, texts[:20], KEYS)
    path = tmp_path / "bands" / "000000.arrays"
    whole = path.read_bytes()
    for torn in (b"", whole[:-7], whole[:72], whole[:128] + b"x" + whole[129:]):
        path.write_bytes(torn)
        with pytest.raises(RequestError, match=r"bands/000000\.arrays: damaged"):
            dedup.plan(tmp_path, KEYS)
    path.unlink()
    dedup_corpus.write(tmp_path, 1, texts[20:30], KEYS)
    with pytest.raises(RequestError, match="part 0 does not have all of its keys"):
        dedup.resolve(tmp_path, KEYS)


def test_resolving_too_early_is_refused(texts, tmp_path):
    dedup_corpus.write(tmp_path, 0, texts[:20], KEYS)
    tasks = dedup.plan(tmp_path, KEYS)
    with pytest.raises(RequestError, match="results/documents-0000-4096"):
        dedup.resolve(tmp_path, KEYS)
    with pytest.raises(RequestError, match="verdicts"):
        dedup.reduce(tmp_path, KEYS, dedup.plan_lines(tmp_path, KEYS)[0])
    assert len(tasks) == 2
