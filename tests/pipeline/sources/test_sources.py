"""Sources: what is read, what is counted as unreadable, and what is refused."""

import json
import os

import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from pipeline.documents import stage as documents
from pipeline.sources import file_source
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.storage import files
from pipeline.sources.storage.digests import fingerprint
from pipeline.sources.text import TextSource
from tests.support.paths import SHARED_DATA
from tests.support.pipeline.corpora import of_jsonl, packed, recipe, texts, write_jsonl


def _read(source):
    bad = BadInputs()
    documents_read = [document for part in source.parts(1) for document in source.read(part, bad)]
    assert len({document.id for document in documents_read}) == len(documents_read)
    return documents_read, bad


@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".zst"])
def test_jsonl_in_every_compression(tmp_path, ending):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ["one\u2028", "two", "drei ü"])
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(packed(lines.encode(), ending))
    documents_read, bad = _read(JsonlSource(str(tmp_path), "text"))
    assert [document.text for document in documents_read] == ["one\u2028", "two", "drei ü"]
    assert bad.good == 3 and not bad.reasons


def test_bad_lines_are_counted_by_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": "fine"}).encode()
    lines = [
        b"\xef\xbb\xbf" + good,
        b"",
        b"{broken",
        b'{"text": "\xff"}',
        b'{"body": "x", "n": 1}',
        b'{"text": 5}',
        b"[1]",
    ]
    path.write_bytes(b"\r\n".join([*lines, good]))
    documents_read, bad = _read(JsonlSource(str(path), "text"))
    assert len(documents_read) == bad.good == 2
    assert bad.reasons == {
        "malformed line": 1,
        "invalid UTF-8": 1,
        "field 'text' missing": 1,
        "field 'text' is a number": 1,
        "not a JSON object": 1,
    }
    assert "fields there: body, n" in bad.examples["field 'text' missing"][0]


def test_a_json_array_is_named(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"text": "x"}\n]')
    _, bad = _read(JsonlSource(str(tmp_path), "text"))
    assert bad.reasons == {"a JSON array, not JSON lines": 1}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=20), st.integers(1, 60))
def test_ranges_of_a_plain_file_lose_and_repeat_nothing(tmp_path_factory, lines, size):
    path = write_jsonl(tmp_path_factory.mktemp("ranges") / "a.jsonl", [f"{i}{line}" for i, line in enumerate(lines)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_source, "PART_BYTES", size)
        documents_read, bad = _read(JsonlSource(str(path), "text"))
    assert [document.text for document in documents_read] == [f"{i}{line}" for i, line in enumerate(lines)]
    assert not bad.reasons


def test_too_many_bad_lines_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts(20))
    path.write_bytes(path.read_bytes() + b"{broken\n")
    with pytest.raises(RequestError, match=r"1 of 21 inputs .* data.max_bad_fraction \(0.01\): malformed line: 1"):
        documents.build(of_jsonl(tmp_path, path))
    assert not RunLayout.of(of_jsonl(tmp_path, path)).documents.exists()
    published = documents.build(of_jsonl(tmp_path, path, "data.max_bad_fraction=0.1"))
    assert published is not None and published.counts["bad_inputs"] == {"malformed line": 1}


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_source_is_rejected(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(RequestError, match="nothing to read"):
        documents.build(of_jsonl(tmp_path, tmp_path / "a.jsonl"))


def test_a_source_without_kept_documents_is_rejected(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["short", "also short"])
    with pytest.raises(RequestError, match=r"no document is left after cleaning: 2 shorter than data.clean.min_chars"):
        documents.build(of_jsonl(tmp_path, path))


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(RequestError, match="neither a file nor a folder"):
        documents.build(of_jsonl(tmp_path, tmp_path / "nowhere*.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="has no file ending in"):
        documents.build(of_jsonl(tmp_path, tmp_path / "empty"))


def test_folders_globs_and_hidden_files(tmp_path):
    for name in ("b/2.txt", "a/1.txt", ".hidden/3.txt", "a/4.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(files.find(str(tmp_path), (".txt",))) == ["a/1.txt", "b/2.txt"]
    assert list(files.find(str(tmp_path / "*" / "*.txt"), (".txt",))) == ["a/1.txt", "b/2.txt"]
    assert list(files.find(str(tmp_path / "a" / "1.txt"), (".md",))) == ["1.txt"]


def test_a_fingerprint_depends_on_content_but_not_on_location(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("same")
    first, second = (fingerprint(TextSource(str(tmp_path / name), 0).files) for name in ("one", "two"))
    assert first == second
    (tmp_path / "two" / "a.txt").write_text("sane")
    assert fingerprint(TextSource(str(tmp_path / "two"), 0).files) != first


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfone\r\ntwo\rthree\n", "one\ntwo\nthree\n".encode("utf-16"), b"one\ntwo\nthree\n"],
    ids=["BOM and CRLF", "UTF-16", "plain"],
)
def test_line_endings_and_encodings_of_text_files(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    documents_read, _ = _read(TextSource(str(tmp_path), 0))
    assert [document.text for document in documents_read] == ["one\ntwo\nthree\n"]


def test_text_that_is_not_utf8_is_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_text("fine")
    documents_read, bad = _read(TextSource(str(tmp_path), 0))
    assert len(documents_read) == 1 and bad.reasons == {"invalid UTF-8": 1}


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_names_that_are_not_utf8_are_escaped(tmp_path, kind):
    folder = tmp_path / "source"
    folder.mkdir()
    for number, stem in enumerate([b"caf\xe9", b"caf\xe8", b"plain"]):
        name = os.fsdecode(stem + {"text": b".txt", "jsonl": b".jsonl"}[kind])
        (folder / name).write_text(json.dumps({"text": texts(3)[number]}))
    (folder / os.fsdecode(b"\xff." + (b"txt" if kind == "text" else b"jsonl"))).write_bytes(b"{\xff")
    run_recipe = recipe(tmp_path, f"data.source.kind={kind}", f"data.source.path={folder}", "data.max_bad_fraction=0.5")
    published = documents.build(run_recipe)
    assert (
        published is not None
        and published.counts["documents"] == 3
        and published.counts["bad_inputs"] == {"invalid UTF-8": 1}
    )
    kept = parquet.read_table(RunLayout.of(run_recipe).documents / "clean-00000.parquet")["source"].to_pylist()
    assert [name.partition(".")[0] for name in kept] == ["caf\\xe8", "caf\\xe9", "plain"]


def test_a_field_name_that_utf8_cannot_hold_is_reported(tmp_path, capsysbinary):
    path = write_jsonl(tmp_path / "a.jsonl", texts(3))
    path.write_text(path.read_text() + '{"\\ud800": 1}\n')
    published = documents.build(of_jsonl(tmp_path, path, "data.max_bad_fraction=0.5"))
    assert published is not None and published.counts["bad_inputs"] == {"field 'text' missing": 1}
    assert b"\\ud800" in capsysbinary.readouterr().out


def test_books(tmp_path):
    if not (SHARED_DATA / "gutenberg").exists():
        pytest.skip("no gutenberg folder next to the checkout")
    run_recipe = recipe(tmp_path, "data.source.kind=text", f"data.source.path={SHARED_DATA / 'gutenberg'}")
    published = documents.build(run_recipe)
    assert published is not None and published.counts["documents"] > 400
    table = parquet.read_table(RunLayout.of(run_recipe).documents / "clean-00000.parquet")
    assert not any("\r" in text or "\ufeff" in text for text in table["text"].to_pylist())
