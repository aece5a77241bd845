"""The hub source, offline, with the library's calls on a local repository of the same layout."""

import os
import re

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet as parquet
import pytest

from artefacts.errors import RequestError
from pipeline.sources import hub
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.hub import HubSource
from pipeline.sources.storage import retry
from pipeline.sources.storage.digests import fingerprint
from tests.support.pipeline import corpora

TEXTS = corpora.texts(50, seed=4, sentences=3)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Retry without waiting, and without cached repositories from other tests."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 0)
    hub._load.cache_clear()
    hub._builder.cache_clear()


@pytest.fixture
def repository(tmp_path):
    return corpora.write_hub(TEXTS, tmp_path / "repository")


def read(source):
    bad = BadInputs()
    return [document for part in source.parts(1) for document in source.read(part, bad)], bad


def breaking(monkeypatch, faults, change=lambda table: table):
    """Make the library's stream raise ``faults`` in turn, each after a batch of two rows."""
    whole = datasets.IterableDataset.iter
    left = list(faults)

    def broken(self, batch_size):
        for number, table in enumerate(whole(self, 2)):
            if number == 1 and left:
                raise left.pop(0)
            yield table if len(left) == len(faults) else change(table)

    monkeypatch.setattr(datasets.IterableDataset, "iter", broken)
    return left


def test_a_part_is_a_data_file(repository):
    source = HubSource(str(repository), "text")
    parts = list(source.parts(1))
    names = [f"plain_text/train-{n:05d}-of-00003.parquet" for n in range(3)]
    assert [part.where for part in parts] == [(n, 3, name) for n, name in enumerate(names)]
    assert [part.size for part in parts] == [(repository / name).stat().st_size for name in names]
    assert source.size(1) == sum(part.size for part in parts)
    documents_read, _ = read(source)
    assert documents_read[21].id == f"hub:{names[1]}:0" and documents_read[21].source == names[1]


def test_a_broken_stream_resumes_where_it_broke(repository, monkeypatch):
    whole, _ = read(HubSource(str(repository), "text"))
    left = breaking(monkeypatch, [ConnectionError("reset"), TimeoutError("slow"), OSError(5, "lost"), EOFError()])
    documents_read, bad = read(HubSource(str(repository), "text"))
    assert not left and documents_read == whole and not bad.reasons and bad.good == len(TEXTS)


def test_a_stream_that_stays_broken_gives_a_one_line_error(repository, monkeypatch):
    left = breaking(monkeypatch, [ConnectionError("no route\nto host")] * 20)
    with pytest.raises(RequestError, match=r"train-00000.*failed 6 times in a row.*no route to host.*check the net"):
        read(HubSource(str(repository), "text"))
    assert len(left) == 14


def test_rows_that_change_during_reading_are_rejected(repository, monkeypatch):
    def other(table):
        return pyarrow.table({"text": [value.as_py() + "!" for value in table["text"]]})

    breaking(monkeypatch, [ConnectionError("reset")], other)
    with pytest.raises(RequestError, match="row 1 changed after reconnecting"):
        read(HubSource(str(repository), "text"))


def test_waiting_doubles(monkeypatch):
    waited = []
    monkeypatch.setattr(retry, "FIRST_WAIT", 1.0)
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    with pytest.raises(RequestError, match="it: failed 6 times in a row, the last time with ValueError: inv"):
        retry.retry(lambda: int("x"), "it")
    assert waited == [1, 2, 4, 8, 16]


def test_a_damaged_data_file_is_counted(repository):
    path = repository / "plain_text" / "train-00001-of-00003.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    documents_read, bad = read(HubSource(str(repository), "text"))
    assert [document.text for document in documents_read] == TEXTS[:21] + TEXTS[42:]
    assert bad.reasons == {"unreadable file": 1} and "train-00001" in bad.examples["unreadable file"][0]


def test_other_columns_and_configurations(tmp_path):
    folder = tmp_path / "repository"
    (folder / "plain_text").mkdir(parents=True)
    (folder / "README.md").write_text(corpora._CONFIG)
    table = pyarrow.table({"url": ["a", "b", "c"], "body": ["one", None, "three"]})
    parquet.write_table(table, folder / "plain_text" / "train-0.parquet")
    documents_read, bad = read(HubSource(str(folder), "body", config="plain_text"))
    assert [document.text for document in documents_read] == ["one", "three"] and bad.reasons == {"no text (null)": 1}
    assert [document.id for document in documents_read] == [f"hub:plain_text/train-0.parquet:{row}" for row in (0, 2)]
    with pytest.raises(RequestError, match=r"no column 'text'; its columns are: url \(string\), body \(string\)"):
        read(HubSource(str(folder), "text"))
    with pytest.raises(RequestError, match=r"'other' not found. Available: .*plain_text"):
        read(HubSource(str(folder), "body", config="other"))
    with pytest.raises(RequestError, match=r"Bad split: test. Available splits: .*train"):
        read(HubSource(str(folder), "body", split="test"))


def test_a_repository_of_lines(tmp_path):
    corpora.write_jsonl(tmp_path / "train.jsonl", TEXTS[:5])
    corpora.write_jsonl(tmp_path / "test.jsonl", TEXTS[5:7])
    documents_read, bad = read(HubSource(str(tmp_path), "text"))
    assert [document.text for document in documents_read] == TEXTS[:5] and bad.good == 5
    assert documents_read[0].id == "hub:train.jsonl:0"
    with pytest.raises(RequestError, match=r"no column 'body'; its columns are: text \(string\)"):
        read(HubSource(str(tmp_path), "body"))


def test_a_local_repository_is_known_by_its_files(repository, tmp_path):
    source = HubSource(str(repository), "text")
    assert source.details() == {"repository": None, "revision": None}
    before = fingerprint(source.inputs()["files"])
    moved = repository.rename(tmp_path / "moved")
    assert fingerprint(HubSource(str(moved), "text").inputs()["files"]) == before
    parquet.write_table(pyarrow.table({"text": ["x"]}), moved / "plain_text" / "train-00001-of-00003.parquet")
    assert fingerprint(HubSource(str(moved), "text").inputs()["files"]) != before


def test_names_of_data_files_that_are_not_utf8_are_escaped(repository):
    for number, name in enumerate([b"train-caf\xe8.parquet", b"train-caf\xe9.parquet"]):
        path = repository / "plain_text" / f"train-0000{number}-of-00003.parquet"
        path.rename(path.with_name(os.fsdecode(name)))
    documents_read, _ = read(HubSource(str(repository), "text"))
    names = {document.source for document in documents_read}
    assert len(names) == 3 and {r"plain_text/train-caf\xe8.parquet", r"plain_text/train-caf\xe9.parquet"} < names


def test_the_revision_is_recorded_and_pinned(repository, monkeypatch):
    calls = []
    sha = "0123456789abcdef" * 2 + "01234567"

    def repo_info(self, name, repo_type, revision):
        calls.append((name, repo_type, revision))
        if len(calls) == 1:
            raise ConnectionError("reset")
        return huggingface_hub.hf_api.DatasetInfo(id=name, sha=sha, private=False, downloads=0, likes=0, tags=[])

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    loaded = []
    real = datasets.load_dataset

    def load(path, config, **keys):
        loaded.append((path, keys["revision"]))
        return real(str(repository), config, **{**keys, "revision": None})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HubSource("Skylion007/openwebtext", "text", revision="main")
    assert source.inputs() == {"commit": sha} and source.details()["revision"] == sha
    assert source._stream().num_shards == 3 and loaded == [("Skylion007/openwebtext", sha)]
    assert calls == [("Skylion007/openwebtext", "dataset", "main")] * 2
    pinned = HubSource("Skylion007/openwebtext", "text", revision=sha)
    assert pinned.inputs() == {"commit": sha} and len(calls) == 2


def test_an_offline_hub_and_a_missing_repository(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match="nobody/nothing is on the Hugging Face hub, but HF_HUB_OFFLINE") as error:
        HubSource("nobody/nothing", "text").inputs()
    assert "\n" not in str(error.value)
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE"):
        HubSource("nobody/nothing", "text", revision="a" * 40).size(1)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(RequestError, match=re.escape("./no such (revision newest) is neither a folder nor a dataset")):
        HubSource("./no such", "text").inputs()
    monkeypatch.setattr(
        huggingface_hub.HfApi, "repo_info", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("down"))
    )
    with pytest.raises(RequestError, match=r"nobody/nothing on the Hugging Face hub .*: failed 3 times in a row.*down"):
        HubSource("nobody/nothing", "text").inputs()
