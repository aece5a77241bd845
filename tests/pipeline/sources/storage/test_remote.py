"""Sources behind URLs, with fsspec's file system in memory: listed, and read across broken connections."""

import builtins

import fsspec
import pytest

from artefacts.errors import RequestError
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.openwebtext import OpenWebTextSource
from pipeline.sources.registry import open_source
from pipeline.sources.storage import files, remote, retry
from pipeline.sources.storage.digests import fingerprint
from pipeline.sources.text import TextSource
from tests.support.pipeline import corpora

TEXTS = corpora.texts(30, seed=6, sentences=3)


@pytest.fixture
def memory(monkeypatch):
    """An empty file system in memory, without waiting between attempts."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 0)
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def read(source):
    bad = BadInputs()
    return [document.text for part in source.parts(1) for document in source.read(part, bad)], bad


@pytest.mark.parametrize("kind", [kind for kind in corpora.KINDS if kind != "hub"])
def test_every_layout_is_read_from_a_url(memory, tmp_path, kind):
    keys = corpora.write(kind, TEXTS, tmp_path / "source")
    memory.put(str(tmp_path / "source"), "/bucket/corpus", recursive=True)
    local_recipe = corpora.recipe(tmp_path, *(f"{key}={value}" for key, value in keys.items()))
    section = local_recipe.data.source
    here = open_source(section, local_recipe)
    remote = open_source(section.model_copy(update={"path": "memory://bucket/corpus"}), local_recipe)
    assert read(remote)[0] == TEXTS and read(remote)[1] == read(here)[1]
    assert remote.size(1) == here.size(1) and list(remote.files) == list(here.files)
    assert fingerprint(remote.files) == fingerprint(here.files)


def test_globs_and_single_files(memory):
    for name in ("a/1.jsonl", "a/2.jsonl", "b/3.jsonl", ".hidden/4.jsonl", "a/5.bin"):
        memory.pipe(f"/bucket/{name}", b'{"text": "%s"}\n' % name.encode())
    assert read(JsonlSource("memory://bucket/?/*.jsonl", "text"))[0] == ["a/1.jsonl", "a/2.jsonl", "b/3.jsonl"]
    assert read(JsonlSource("memory://bucket/a/2.jsonl", "text"))[0] == ["a/2.jsonl"]
    listed = files.find("memory://bucket", (".jsonl",))
    assert list(listed) == ["a/1.jsonl", "a/2.jsonl", "b/3.jsonl"]
    assert listed["a/1.jsonl"].path == "memory:///bucket/a/1.jsonl"
    with pytest.raises(RequestError, match=r"memory://bucket/none.jsonl is neither a file nor a folder"):
        files.find("memory://bucket/none.jsonl", (".jsonl",))
    with pytest.raises(RequestError, match=r"has no file ending in .csv"):
        files.find("memory://bucket", (".csv",))


def test_a_file_url_is_a_path(tmp_path):
    (tmp_path / "a.txt").write_text("here")
    assert read(TextSource(f"file://{tmp_path}", 0))[0] == ["here"]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "openwebtext-tar-xz", "parquet", "7z"])
def test_broken_connections_lose_and_repeat_nothing(memory, tmp_path, monkeypatch, kind):
    keys = corpora.write(kind, TEXTS, tmp_path / "source")
    memory.put(str(tmp_path / "source"), "/corpus", recursive=True)
    local_recipe = corpora.recipe(tmp_path, *(f"{key}={value}" for key, value in keys.items()))
    source = open_source(local_recipe.data.source.model_copy(update={"path": "memory://corpus"}), local_recipe)
    real, count = type(memory).open, [0]

    class Breaking:
        def __init__(self, stream):
            self.stream = stream

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def read(self, size):
            count[0] += 1
            if count[0] % 3 == 0:
                raise ConnectionResetError("by peer")
            return self.stream.read(min(size, 700))

    monkeypatch.setattr(type(memory), "open", lambda self, *a, **k: Breaking(real(self, *a, **k)))
    texts, bad = read(source)
    assert texts == TEXTS and not bad.reasons and count[0] > 3


def test_a_connection_that_stays_broken_does_not_count_as_bad_input(memory, monkeypatch):
    memory.pipe("/a.jsonl", b'{"text": "x"}\n')

    def refuse(self, *args, **keys):
        raise ConnectionError("refused")

    source = JsonlSource("memory://a.jsonl", "text")
    list(source.parts(1))
    monkeypatch.setattr(type(memory), "open", refuse)
    with pytest.raises(RequestError, match=r"memory:///a.jsonl: failed 6 times in a row.*refused"):
        read(source)


def test_storage_metadata_identifies_the_content_of_a_file(memory, monkeypatch):
    infos = [{"name": "/a.jsonl", "size": 5, "type": "file", "ETag": '"1"'}]
    monkeypatch.setattr(remote, "listed", lambda url, key: (False, infos))
    before = fingerprint(files.find("memory://a.jsonl", ()))
    assert fingerprint(files.find("memory://a.jsonl", ())) == before
    infos[0] = infos[0] | {"ETag": '"2"'}
    assert fingerprint(files.find("memory://a.jsonl", ())) != before


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def no_s3fs(name, *rest, **keys):
        if name.split(".")[0] == "s3fs":
            raise ImportError(name)
        return real(name, *rest, **keys)

    monkeypatch.setattr(builtins, "__import__", no_s3fs)
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(RequestError, match=r"s3://bucket/\*.jsonl: reading s3:// needs a package: pip install s3fs"):
        files.find("s3://bucket/*.jsonl", (".jsonl",))


def test_an_unknown_protocol_is_refused():
    with pytest.raises(RequestError, match="nonesuch://x: ValueError: Protocol not known: nonesuch"):
        OpenWebTextSource("nonesuch://x").inputs()
