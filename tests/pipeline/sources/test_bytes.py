"""The bytes lost to damaged input, and that only a few documents are held in memory at a time."""

import gzip
import json
import os
import random
import tracemalloc

import pyarrow
import pyarrow.parquet as parquet
import pytest

from artefacts.errors import RequestError
from pipeline.documents import stage as documents
from pipeline.sources import openwebtext
from pipeline.sources import text as text_module
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.csv import CsvSource
from pipeline.sources.hub import HubSource
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.openwebtext import OpenWebTextSource
from pipeline.sources.parquet import ParquetSource
from pipeline.sources.registry import open_source
from pipeline.sources.storage import files
from pipeline.sources.text import TextSource
from tests.support.pipeline import corpora
from tests.support.pipeline.corpora import packed, pages, tar_of

TEXTS = corpora.texts(600, seed=11, sentences=4)


def read(source):
    bad = BadInputs()
    parts = list(source.parts(1))
    documents_read = [document.text for part in parts for document in source.read(part, bad)]
    assert bad.bytes == sum(part.size for part in parts) and bad.lost_bytes <= bad.bytes
    return documents_read, bad


def refused(bad, inputs=1):
    """Check that the lost bytes alone refuse it."""
    assert sum(bad.reasons.values()) <= max(inputs, 0.01 * bad.good)
    with pytest.raises(
        RequestError, match=r"inputs cannot be read( \(.*about [\d.]+% of the bytes\), above|: )"
    ) as caught:
        bad.check(0.01, "corpus")
    return "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.xz", "jsonl.zst", "openwebtext-tar-xz", "openwebtext-subsets"])
def test_a_corpus_cut_short_is_refused(tmp_path, kind):
    keys = corpora.write(kind, TEXTS, tmp_path / "source")
    path = max((tmp_path / "source").rglob("*.*"), key=lambda path: path.stat().st_size * path.is_file())
    os.truncate(path, path.stat().st_size * 6 // 10)
    recipe = corpora.recipe(tmp_path, *(f"{key}={value}" for key, value in keys.items()))
    documents_read, bad = read(open_source(recipe.data.source, recipe))
    assert len(documents_read) < len(TEXTS) and refused(bad)
    with pytest.raises(RequestError, match="inputs cannot be read"):
        documents.build(recipe)


def test_damage_halfway_loses_the_other_half(tmp_path):
    content = bytearray(tar_of(pages(TEXTS[:100])))
    at = content.index(b"0000050-")
    content[at + 150] ^= 0x55
    (tmp_path / "a.tar").write_bytes(content)
    documents_read, bad = read(OpenWebTextSource(str(tmp_path)))
    assert documents_read == TEXTS[:50] and 0.4 < bad.lost_bytes / bad.bytes < 0.6 and refused(bad)


def test_an_unclosed_quote_loses_everything_after_it(tmp_path):
    lines = [f'{n},"{n} lines"\n' for n in range(1000)]
    (tmp_path / "a.csv").write_text("n,text\n" + "".join(lines[:600]) + '600,"open\n' + "x,y\n" * 400)
    documents_read, bad = read(CsvSource(str(tmp_path), "text"))
    assert len(documents_read) == 600 and bad.reasons == {"malformed record": 1}
    assert 0.35 < bad.lost_bytes / bad.bytes < 0.45 and refused(bad)


def test_a_hole_of_zeros_counts_by_its_length(tmp_path):
    line = b'{"text": "some words"}\n'
    for ending in ("", ".gz"):
        (tmp_path / f"a.jsonl{ending}").write_bytes(packed(line * 900 + bytes(30_000) + b"\n" + line * 900, ending))
    documents_read, bad = read(JsonlSource(str(tmp_path), "text"))
    assert len(documents_read) == 3600 and bad.reasons == {"malformed line": 2} and refused(bad, 2)


def test_one_broken_table_of_eighty(tmp_path):
    for number in range(80):
        parquet.write_table(pyarrow.table({"text": TEXTS[:50]}), tmp_path / f"{number:02d}.parquet")
    os.truncate(tmp_path / "07.parquet", (tmp_path / "07.parquet").stat().st_size - 20)
    documents_read, bad = read(ParquetSource(str(tmp_path), "text"))
    assert len(documents_read) == 79 * 50 and bad.reasons == {"unreadable file": 1} and refused(bad)


def test_a_small_damaged_file_of_a_large_corpus_is_tolerated(tmp_path, capsys):
    corpora.write_jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 100)[:-9])
    documents_read, bad = read(JsonlSource(str(tmp_path), "text"))
    assert documents_read[:600] == TEXTS and 0 < bad.lost_bytes < 100 and bad.reasons == {"unreadable file": 1}
    whole = BadInputs()
    whole.merge(json.loads(json.dumps(bad.dump())))
    assert whole == bad
    whole.check(0.01, "corpus")
    assert "skipped 1 of 701 inputs: unreadable file (b.jsonl.gz" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a_data.xz"])
def test_a_tar_that_ends_between_two_members(tmp_path, monkeypatch, name):
    monkeypatch.setattr(openwebtext, "_PART_BYTES", 3000)
    # A page takes a header and two blocks.
    content = tar_of(pages(["page " * 120] * 20))
    (tmp_path / name).write_bytes(packed(content[: 15 * 3 * 512], name))
    documents_read, bad = read(OpenWebTextSource(str(tmp_path)))
    assert len(documents_read) == 15 and bad.reasons == {"unreadable file": 1}
    assert "ends without an end-of-archive marker" in bad.examples["unreadable file"][0] and refused(bad)
    (tmp_path / name).write_bytes(packed(content[: 20 * 3 * 512 + 512], name))
    documents_read, bad = read(OpenWebTextSource(str(tmp_path)))
    assert len(documents_read) == 20 and not bad.reasons and not bad.lost_bytes


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.7z"])
def test_a_member_that_is_too_large(tmp_path, monkeypatch, name):
    import py7zr

    monkeypatch.setattr("pipeline.sources.storage.tar.MOST_BYTES", 1000)
    monkeypatch.setattr("pipeline.sources.storage.seven_zip.MOST_BYTES", 1000)
    members = pages(["one", random.Random(1).randbytes(400_000).hex(), "two"])
    if name.endswith(".7z"):
        with py7zr.SevenZipFile(tmp_path / name, "w") as archive:
            for page, content in members:
                archive.writestr(content, page)
    else:
        (tmp_path / name).write_bytes(packed(tar_of(members), name))
    documents_read, bad = read(OpenWebTextSource(str(tmp_path)))
    assert documents_read == ["one", "two"] and bad.reasons == {openwebtext._TOO_LARGE: 1}
    assert bad.lost_bytes > 0.5 * bad.bytes or name.endswith(".7z")


def test_a_text_too_long_to_be_one_document(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "MOST_BYTES", 1_000_000)
    (tmp_path / "a.txt").write_text("long " * 300_000)
    (tmp_path / "b.txt").write_text("short")
    documents_read, bad = read(TextSource(str(tmp_path), 0))
    assert (
        documents_read == ["short"]
        and bad.reasons == {"longer than 1.00 MB: set chunk_chars": 1}
        and bad.lost_bytes == 1_500_000
    )
    with pytest.raises(RequestError, match=r"larger than 1\.00 MB: set data.source.chunk_chars"):
        read(TextSource(str(tmp_path), 0, merge=True))
    (tmp_path / "a.txt").unlink()
    assert read(TextSource(str(tmp_path), 0, merge=True))[0] == ["short"]


def test_carried_text_is_measured_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "_CARRIED_BYTES", 3000)
    (tmp_path / "a.txt").write_text("🐟 " * 5000)
    parts = list(TextSource(str(tmp_path), 500, "window", merge=True).parts(1))
    carried = [sum(len(text.encode()) for _, text, _ in part.where[0].documents) for part in parts]
    assert max(carried) < 3000 + 500 * 4 and len(parts) > 5


def test_folders_behind_links(tmp_path):
    for name in ("root/a", "elsewhere/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root" / "a" / "1.txt").write_text("1")
    (tmp_path / "elsewhere" / "deep" / "2.txt").write_text("2")
    (tmp_path / "root" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "0-again").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "elsewhere" / "deep" / "self").symlink_to(".")
    (tmp_path / "root" / "broken").symlink_to(tmp_path / "nowhere")
    assert list(files.find(str(tmp_path / "root"), (".txt",))) == ["a/1.txt", "more/deep/2.txt"]
    with pytest.raises(RequestError, match=r"^some\.key: .* neither"):
        files.find(str(tmp_path / "nowhere"), (".txt",), key="some.key")


def peaks(source):
    """Peak bytes of Arrow's pool and of Python while a source is read, and the number of rows."""
    parts = list(source.parts(1))
    rows = top = 0
    bad = BadInputs()
    tracemalloc.start()
    for part in parts:
        for _ in source.read(part, bad):
            rows += 1
            top = max(top, pyarrow.total_allocated_bytes())
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return top, python, rows


def test_long_rows_are_held_few_at_a_time(tmp_path):
    table = pyarrow.table({"text": [random.Random(n).randbytes(1 << 19).hex() for n in range(40)]})
    parquet.write_table(table, tmp_path / "a.parquet", write_batch_size=1, use_dictionary=False, compression="none")
    before = pyarrow.total_allocated_bytes()
    arrow, python, rows = peaks(ParquetSource(str(tmp_path), "text"))
    assert rows == 40 and arrow - before < 16 << 20 and python < 24 << 20


def test_long_rows_of_the_hub(tmp_path):
    (tmp_path / "plain_text").mkdir()
    table = pyarrow.table({"text": ["long " * 50_000] * 150})
    parquet.write_table(table, tmp_path / "plain_text" / "train-0.parquet")
    (tmp_path / "README.md").write_text(corpora._CONFIG)
    _, python, rows = peaks(HubSource(str(tmp_path), "text"))
    assert rows == 150 and python < 24 << 20


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("jsonl", "merge", "true"),
        ("csv", "chunk", "sentence"),
        ("parquet", "chunk_chars", "100"),
        ("jsonl", "packages", "[json]"),
        ("text", "split", "test"),
        ("pydocs", "config", "x"),
        ("openwebtext", "revision", "main"),
        ("text", "text_field", "body"),
        ("jsonl", "documents", "9"),
        ("hub", "min_chars", "9"),
    ],
)
def test_a_key_that_the_kind_does_not_read_is_refused(tmp_path, kind, key, value):
    with pytest.raises(RequestError, match=rf"{key} is read only by .*, not by kind={kind}"):
        corpora.recipe(tmp_path, f"data.source.kind={kind}", "data.source.path=x", f"data.source.{key}={value}")
