"""The indexed dataset: our reader and those of Megatron and DeepSpeed agree on what our writer writes."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts.errors import RequestError
from pipeline.tokens.indexed_dataset import IndexedDataset, IndexedDatasetWriter, id_type

DOCUMENTS = [[1, 2, 3], [4], [65_499, 0, 7, 2], [5, 5]]


def _write(prefix, kind, documents=DOCUMENTS):
    writer = IndexedDatasetWriter(prefix, np.dtype(kind))
    flat = np.array([token for ids in documents for token in ids], np.int64)
    writer.add(flat, np.array([len(ids) for ids in documents], np.int64))
    writer.finish()
    return prefix


def test_type_of_ids():
    assert id_type(65_499) == np.uint16 and id_type(65_500) == np.int32


@pytest.mark.parametrize("kind", ["<u2", "<i4"])
def test_our_reader(tmp_path, kind):
    dataset = IndexedDataset(_write(tmp_path / "a", kind))
    assert len(dataset) == 4 and dataset.tokens.dtype == np.dtype(kind)
    assert [dataset.document(i).tolist() for i in range(4)] == DOCUMENTS
    assert dataset.lengths.tolist() == [3, 1, 4, 2]
    assert dataset.tokens.tolist() == [token for ids in DOCUMENTS for token in ids]
    with pytest.raises(IndexError):
        dataset.document(4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 65_535), max_size=20), max_size=10))
def test_round_trip(tmp_path_factory, documents):
    dataset = IndexedDataset(_write(tmp_path_factory.mktemp("round") / "a", "<u2", documents))
    assert [dataset.document(i).tolist() for i in range(len(dataset))] == documents


@pytest.mark.parametrize("kind", ["<u2", "<i4"])
def test_megatron_reads_it(tmp_path, kind):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dataset = megatron.IndexedDataset(str(_write(tmp_path / "a", kind)))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert dataset.index.dtype == np.dtype(kind)


def test_deepspeed_reads_the_wide_form(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    deepspeed = pytest.importorskip("deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset")
    dataset = deepspeed.MMapIndexedDataset(str(_write(tmp_path / "a", "<i4")), skip_warmup=True)
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS


def test_we_read_what_megatron_wrote(tmp_path):
    """Also documents of several sequences."""
    torch = pytest.importorskip("torch")
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.uint16)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3])
    builder.add_document(torch.tensor([6]), [1])
    builder.finalize(str(tmp_path / "a.idx"))
    dataset = IndexedDataset(tmp_path / "a")
    assert [dataset.document(i).tolist() for i in range(len(dataset))] == [[1, 2, 3, 4, 5], [6]]
    assert dataset.lengths.tolist() == [2, 3, 1]


def test_a_shard_has_no_name_before_it_is_finished(tmp_path):
    writer = IndexedDatasetWriter(tmp_path / "a", np.dtype("<u2"))
    writer.add(np.array([1]), np.array([1]))
    assert not (tmp_path / "a.bin").exists() and not (tmp_path / "a.idx").exists()
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_damage_is_named(tmp_path):
    prefix = _write(tmp_path / "a", "<u2")
    whole = (tmp_path / "a.bin").read_bytes()
    (tmp_path / "a.bin").write_bytes(whole[:-2])
    with pytest.raises(RequestError, match="does not match its index"):
        IndexedDataset(prefix)
    index = (tmp_path / "a.idx").read_bytes()
    for content, message in (
        (index[:-1], "truncated"),
        (b"x" * 80, "not an indexed dataset"),
        (b"", "not an indexed"),
    ):
        (tmp_path / "a.idx").write_bytes(content)
        with pytest.raises(RequestError, match=message):
            IndexedDataset(prefix)
    (tmp_path / "a.idx").unlink()
    with pytest.raises(RequestError, match="no such token shard"):
        IndexedDataset(prefix)
