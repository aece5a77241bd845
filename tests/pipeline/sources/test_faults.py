"""A disk that fails, or a source that shrinks, while it is read: nothing is lost or counted wrongly."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from artefacts.errors import StorageError
from configs import command
from pipeline.__main__ import main
from pipeline.documents import ingest
from pipeline.documents import stage as documents
from pipeline.parallel import TaskShard
from pipeline.sources import file_source, openwebtext
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.registry import open_sources
from pipeline.sources.storage import compressed, files
from tests.support.pipeline.corpora import (
    KINDS,
    RECIPE,
    digests,
    of_jsonl,
    overrides,
    recipe,
    texts,
    write,
    write_jsonl,
)


class _Failing(io.RawIOBase):
    """A file with small blocks. The kernel reports EIO when ``fails`` returns True."""

    def __init__(self, stream, fails):
        self._stream, self._fails = stream, fails

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        return self._stream.seek(offset, whence)

    def tell(self):  # words: ok
        return self._stream.tell()

    def readinto(self, buffer):
        if self._fails():
            with open("/proc/self/mem", "rb") as unreadable:
                os.dup2(unreadable.fileno(), self._stream.fileno())
        return self._stream.raw.readinto(memoryview(buffer)[:2048])


@pytest.fixture
def failing(monkeypatch):
    """Sets a function that is called before each block, and returns whether the file fails."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("no file here that always fails to be read")
    opened = files.File.open

    def fail(when):
        monkeypatch.setattr(
            files.File, "open", lambda file, size=2048: io.BufferedReader(_Failing(opened(file, size), when), 2048)
        )

    return fail


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hub"])
def test_a_failing_disk_does_not_count_as_damaged_input(kind, failing, tmp_path):
    options = [f"{key}={value}" for key, value in write(kind, texts(60), tmp_path / "source").items()]
    (source,) = open_sources(recipe(tmp_path, *options)).values()
    blocks = source.size(1) // 2048
    left = iter(range(1 << 30))
    failing(lambda: next(left) == blocks // 2)
    bad = BadInputs()
    with pytest.raises(StorageError, match="the disk failed to read it"):
        for part in source.parts(1):
            for _ in source.read(part, bad):
                pass
    assert not bad.reasons


def _command(line, monkeypatch, capsys):
    """Run a command in this process, and return its exit status and stderr."""
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as left:
        command.run(main)
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_failing_network_file_system_does_not_count_as_damaged_input(number, monkeypatch, capsys, tmp_path):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    with pytest.raises(StorageError, match=os.strerror(number)):
        raise files._storage_error(OSError(number, os.strerror(number)), "a.txt")
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as left:
        command.run(failing)
    assert left.value.code == 1 and "failed to read or write" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "openwebtext-tar-xz"])
def test_a_read_error_in_the_middle(kind, failing, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(file_source, "PART_BYTES", 8192)
    monkeypatch.setattr(openwebtext, "_PART_BYTES", 8192)
    monkeypatch.setattr(compressed, "_INPUT_BYTES", 2048)
    options = [f"{key}={value}" for key, value in write(kind, texts(150), tmp_path / "source").items()]
    documents.build(recipe(tmp_path / "whole", *options))
    partial = tmp_path / "run" / "demo" / ".documents.partial"

    def finished():
        return {int(path.stem) for path in partial.glob("scratch/*/[0-9]*.json")}

    line = ["pipeline", "clean", "--recipe", str(RECIPE), *overrides(tmp_path / "run", *options)]
    failing(lambda: len(finished()) >= 3)
    status, output = _command(line, monkeypatch, capsys)
    ends = [line for line in output.splitlines() if line.startswith("error:")]
    assert status == 1 and len(ends) == 1 and "Input/output error" in ends[0] and "Traceback" not in output
    kept = finished()
    assert len(kept) >= 3
    again = []

    def clean_part(*task):
        again.append(task[3])
        return cleaned(*task)

    cleaned = ingest.clean_part
    monkeypatch.setattr(ingest, "clean_part", clean_part)
    failing(lambda: False)
    assert _command(line, monkeypatch, capsys)[0] == 0
    assert again and not kept & set(again)
    assert digests(tmp_path / "run" / "demo" / "documents") == digests(tmp_path / "whole" / "demo" / "documents")


def test_a_shrunk_source_removes_no_documents(tmp_path):
    corpus = texts(60)
    (tmp_path / "source").mkdir()
    for number in range(3):
        write_jsonl(tmp_path / "source" / f"{number}.jsonl", corpus[number * 20 : number * 20 + 20])
    recipe = of_jsonl(tmp_path, tmp_path / "source")
    documents.build(recipe)
    before = digests(tmp_path / "demo" / "documents")
    write_jsonl(tmp_path / "source" / "1.jsonl", corpus[20:25])
    (tmp_path / "source" / "2.jsonl").unlink()
    assert documents.build(recipe).counts["documents"] == 25
    (aside,) = (tmp_path / "demo" / "previous").glob("*-documents")
    assert digests(aside) == before
    # Unfinished work is kept too.
    write_jsonl(tmp_path / "source" / "1.jsonl", corpus[20:40])
    documents.ingest(recipe, TaskShard(0, 1))
    (tmp_path / "source" / "1.jsonl").unlink()
    assert documents.build(recipe).counts["documents"] == 20
    (begun,) = (tmp_path / "demo" / "previous").glob("*.documents.partial*")
    assert list(begun.glob("scratch/*/000000.parquet"))
    assert digests(aside) == before
