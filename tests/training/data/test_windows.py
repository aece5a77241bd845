"""Windows over shards, the boundaries of their documents, and batches of windows."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from artefacts.errors import RequestError
from tests.support.training.shards import END, documents, write
from tokenizer.special_tokens import IGNORED
from training.data import disk_reads
from training.data.batch import Batch
from training.data.windows import TokenWindows
from training.layers.packed_documents import Documents


def documents_of(batch: Batch) -> Documents:
    return Documents(batch.starts, *batch.inputs.shape)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, "train", [[np.arange(1000)], [np.arange(1000, 1400)]])


def test_validation_is_spread_over_the_complete_split(folder) -> None:
    batches = TokenWindows(folder, "train", 16).spread(10, 4)
    firsts = [row[0] for batch in batches for row in batch.inputs.tolist()]
    assert len(firsts) == 10
    assert firsts[0] == 0
    assert firsts[-1] > 1300
    assert len(TokenWindows(folder, "train", 16).spread(10_000, 4)) == -(-(62 + 24) // 4)


def test_labels_follow_inputs_and_windows_stay_in_their_shard(folder) -> None:
    windows = TokenWindows(folder, "train", 16)
    assert len(windows) == 999 // 16 + 399 // 16
    (batch,) = windows.rows(np.arange(len(windows))).batches(len(windows))
    assert (batch.labels == batch.inputs + 1).all() and batch.starts is None
    assert batch.inputs.dtype == batch.labels.dtype == torch.int64
    assert batch.inputs.is_contiguous() and batch.labels.is_contiguous()


def test_rows_come_in_the_requested_order(folder) -> None:
    windows = TokenWindows(folder, "train", 16)
    indices = np.array([85, 0, 62, 61, 0])
    expected = [1000 + 23 * 16, 0, 1000, 61 * 16, 0]
    assert windows.rows(indices).tokens[:, 0].tolist() == expected


def test_in_order_predicts_every_token_once(folder) -> None:
    batches = TokenWindows(folder, "train", 16).in_order(batch=5)
    labels = [label for batch in batches for label in batch.labels.flatten().tolist() if label != IGNORED]
    assert labels == [*range(1, 1000), *range(1001, 1400)]
    limited = TokenWindows(folder, "train", 16).in_order(batch=5, limit=100)
    assert sum(batch.targets for batch in limited) == 100


def test_a_split_without_a_full_window_is_read_in_shorter_ones(tmp_path) -> None:
    (batch,) = TokenWindows(write(tmp_path, "val", [[np.arange(10)], [np.arange(20, 27)]]), "val", 16).spread(8, 4)
    labels = [label for label in batch.labels.flatten().tolist() if label != IGNORED]
    assert labels == [*range(1, 10), *range(21, 27)]
    assert TokenWindows(write(tmp_path / "one", "val", [[np.arange(1)]]), "val", 16).spread(8, 4) == []


def test_several_sources_in_separate_folders_are_read_in_order_of_name(tmp_path) -> None:
    for name, first in (("web", 500), ("code", 0)):
        write(tmp_path / name, "val", [[np.arange(first, first + 33)]])
    windows = TokenWindows(tmp_path, "val", 16)
    assert windows.rows(np.arange(4)).tokens[:, 0].tolist() == [0, 16, 500, 516]


def test_missing_shards_are_named(tmp_path) -> None:
    with pytest.raises(RequestError, match="no train shards"):
        TokenWindows(tmp_path, "train", 16)


def test_opening_reads_only_where_the_last_document_ends(tmp_path) -> None:
    """The shard is sparse and has a billion tokens. Its index contains almost only zeros."""
    write(tmp_path, "train", [documents([500])])
    header = bytearray((tmp_path / "train-00000.idx").read_bytes()[:34])
    count, tokens = 1_000_000, 1_000_000_000
    header[18:34] = np.array([count, count + 1], "<i8").tobytes()
    with open(tmp_path / "train-00000.idx", "wb") as stream:
        stream.write(header)
        stream.seek(34 + 4 * (count - 1))
        stream.write(np.array([7], "<i4").tobytes())
        stream.seek(34 + 4 * count + 8 * (count - 1))
        stream.write(np.array([2 * (tokens - 7)], "<i8").tobytes())
        stream.truncate(34 + 12 * count + 8 * (count + 1))
    os.truncate(tmp_path / "train-00000.bin", 2 * tokens)
    windows = TokenWindows(tmp_path, "train", 1024, END)
    assert len(windows) == (tokens - 1) // 1024
    rows = windows.rows(np.array([0, len(windows) - 1]))
    assert rows.tokens[0, :3].tolist() == [10, 11, 12] and not rows.tokens[1].any()


def test_reads_are_announced_only_while_they_come_from_disk(folder, monkeypatch) -> None:
    counts = iter([5, 9, *[9] * 60, 12, 12])
    monkeypatch.setattr(
        disk_reads.resource, "getrusage", lambda whose: SimpleNamespace(ru_inblock=next(counts), ru_majflt=0)
    )
    windows = TokenWindows(folder, "train", 16)
    announced = []
    for shard in windows._shards:
        monkeypatch.setattr(shard, "announce", lambda firsts, lengths: announced.append(firsts.tolist()))
    seen = []
    for _ in range(64):
        windows.rows(np.array([3]))
        seen.append(bool(announced))
        announced.clear()
    assert seen == [True] * 33 + [False] * 29 + [True] * 2


def by_hand(batch: Batch) -> tuple[list, list, list]:
    """Starts, document ids and positions, computed by a plain loop over the tokens."""
    starts, ids, places = [], [], []
    document = -1
    for row, tokens in enumerate(batch.inputs.tolist()):
        ids.append([])
        places.append([])
        for column in range(len(tokens)):
            if column == 0 or tokens[column - 1] == END:
                document, place = document + 1, 0
                starts.append(row * len(tokens) + column)
            ids[-1].append(document)
            places[-1].append(place)
            place += 1
    return [*starts, batch.inputs.numel()], ids, places


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_boundaries_equal_those_of_a_plain_loop(tmp_path, kind) -> None:
    lengths = np.random.default_rng(4).integers(1, 40, 300).tolist()
    write(tmp_path, "train", [documents(lengths[:100]), documents(lengths[100:])], kind)
    windows = TokenWindows(tmp_path, "train", 32, END)
    indices = np.random.default_rng(5).permutation(len(windows))
    batches = windows.rows(indices).batches(7)
    assert sum(len(batch.inputs) for batch in batches) == len(windows)
    for batch in batches:
        starts, ids, places = by_hand(batch)
        assert batch.starts.dtype == torch.int32 and batch.starts.tolist() == starts
        assert documents_of(batch).ids_BT.tolist() == ids and documents_of(batch).positions().tolist() == places


@pytest.mark.gpu
def test_boundaries_on_a_gpu_and_from_pinned_memory(tmp_path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    windows = TokenWindows(write(tmp_path, "train", [documents([5, 9, 30, 2] * 9)]), "train", 16, END)
    (batch,) = windows.rows(np.arange(len(windows))).batches(99)
    pinned = batch.pinned()
    assert pinned.inputs.is_pinned() and pinned.labels.is_pinned() and pinned.starts.is_pinned()
    on_gpu = pinned.to(torch.device("cuda"))
    assert (on_gpu.inputs.cpu() == batch.inputs).all() and (on_gpu.labels.cpu() == batch.labels).all()
    assert (documents_of(on_gpu).positions().cpu() == documents_of(batch).positions()).all()
