"""Packing loses no token and cuts only long documents, and its bytes do not depend on how it is built."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from configs.load import load_recipe
from configs.run_layout import RunLayout
from pipeline.tokens import packing
from pipeline.tokens.best_fit import best_fit, pack
from tests.support.pipeline.corpora import RECIPE, digests
from tests.support.training.shards import documents, write


def naive_rooms(lengths: list[int], capacity: int) -> list[int]:
    """The remaining space of each bin after best-fit decreasing, one item at a time."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return sorted(rooms)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 24).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=80))))
def test_best_fit_equals_placing_one_item_at_a_time(case) -> None:
    capacity, lengths = case
    bins = best_fit(np.array(lengths, np.int64), capacity)
    filled = np.bincount(bins, np.array(lengths, np.int64)) if lengths else np.zeros(0)
    assert sorted(capacity - filled) == naive_rooms(lengths, capacity)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=60), st.integers(1, 25))
def test_every_token_once_and_only_long_documents_are_cut(lengths, capacity) -> None:
    packing_result = pack(np.array(lengths, np.int64), capacity)
    ends = np.cumsum(lengths).tolist()
    tokens: list[int] = []
    held = []
    for first, last in pairwise(packing_result.samples.tolist()):
        pieces = packing_result.pieces[first:last]
        inputs = np.minimum(pieces["length"], capacity)
        held.append(int(inputs.sum()))
        assert 0 < held[-1] <= capacity
        assert (np.diff(pieces["offset"]) > 0).all()
        for offset, length, reads in zip(pieces["offset"].tolist(), inputs.tolist(), pieces["length"], strict=True):
            tokens.extend(range(offset, offset + length))
            document = int(np.searchsorted(ends, offset, side="right"))
            assert offset + reads <= ends[document]
            begins = offset == ends[document] - lengths[document]
            finishes = offset + length == ends[document]
            assert (begins and finishes) or lengths[document] > capacity
            assert finishes or (length == capacity and reads == capacity + 1)
    assert sorted(tokens) == list(range(sum(lengths)))
    assert packing_result.samples[-1] == len(packing_result.pieces) and packing_result.cut == sum(
        length > capacity for length in lengths
    )


def test_lengths_of_web_text_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(6.4, 1.0, 20_000).astype(np.int64) + 1
    packing_result = pack(lengths, 1024)
    assert lengths.sum() / ((len(packing_result.samples) - 1) * 1024) > 0.998


def packed_recipe(root: Path, *more: str):
    small = ["train.context_length=32", "train.packing=best_fit", "finetune.max_length=32", "data.workers=1", *more]
    return load_recipe(RECIPE, [f"run.root={root}", *small])


def tokens(recipe, *, seed: int = 0) -> None:
    """A tokens artefact of three shards."""
    folder = RunLayout.of(recipe).tokens
    lengths = np.random.default_rng(seed).integers(1, 70, (3, 50))
    write(folder, "train", [documents(row.tolist()) for row in lengths])
    files = manifest.describe_files(folder)
    manifest.write(folder, Manifest("tokens", {}, {}, {}, {"train": {}}, files, {}))


def test_counts_and_up_to_date(tmp_path) -> None:
    recipe = packed_recipe(tmp_path)
    tokens(recipe)
    published = packing.build(recipe)
    assert published is not None
    lengths = np.random.default_rng(0).integers(1, 70, (3, 50))
    counts = published.counts
    assert counts["documents"] == 150 and counts["tokens"] == lengths.sum()
    assert counts["documents_cut"] == (lengths > 32).sum() < counts["documents_cut_by_windows"]
    assert 0.95 < counts["utilization"] == counts["tokens"] / counts["samples"] / 32 <= 1
    assert "samples of 32 tokens" in packing.outcome(published, recipe)
    assert packing.build(recipe) is None and packing.outcome(None, recipe).endswith("up to date")


def test_workers_and_restarts_write_the_same_bytes(tmp_path, monkeypatch) -> None:
    folders = []
    for name, workers in (("one", 1), ("two", 2)):
        recipe = packed_recipe(tmp_path / name, f"data.workers={workers}")
        tokens(recipe)
        assert packing.build(recipe) is not None
        folders.append(RunLayout.of(recipe).packing)
    recipe = packed_recipe(tmp_path / "three")
    tokens(recipe)
    real, done = packing.pack_shard, []

    def breaking(prefix: Path, target: Path, context_length: int) -> dict[str, int]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(prefix.name)
        return real(prefix, target, context_length)

    monkeypatch.setattr(packing, "pack_shard", breaking)
    with pytest.raises(KeyboardInterrupt):
        packing.build(recipe)
    monkeypatch.setattr(packing, "pack_shard", lambda *task: done.append(task[0].name) or real(*task))
    assert packing.build(recipe) is not None
    assert done == ["train-00000", "train-00001", "train-00002"]
    folders.append(RunLayout.of(recipe).packing)
    assert digests(folders[0]) == digests(folders[1]) == digests(folders[2])


def test_other_shards_are_packed_again(tmp_path, capsys) -> None:
    recipe = packed_recipe(tmp_path)
    tokens(recipe)
    packing.build(recipe)
    tokens(recipe, seed=1)
    assert packing.build(recipe) is not None
    assert "moved aside" in capsys.readouterr().out


def test_windows_need_no_index_and_shards_must_exist(tmp_path) -> None:
    with pytest.raises(RequestError, match="nothing to pack"):
        packing.build(packed_recipe(tmp_path, "train.packing=windows"))
    with pytest.raises(RequestError, match="run `make data"):
        packing.build(packed_recipe(tmp_path))
