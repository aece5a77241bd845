"""Encodings, delimiters and nested text fields."""

import json

import pyarrow
import pyarrow.parquet as parquet
import pytest

from artefacts.errors import RequestError
from pipeline.sources import file_source
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.hub import HubSource
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.parquet import ParquetSource
from pipeline.sources.registry import open_source
from tests.support.pipeline.corpora import packed, recipe

TEXTS = ["Käse, Brot", "naïve café\nsecond line", "Übermut €5"] * 40


def _read(source):
    bad = BadInputs()
    return [document.text for part in source.parts(1) for document in source.read(part, bad)], bad


def _open(tmp_path, kind, path, *more):
    run_recipe = recipe(tmp_path, f"data.source.kind={kind}", f"data.source.path={path}", *more)
    return open_source(run_recipe.data.source, run_recipe)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "shift_jis", "utf8"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_encodings(tmp_path, monkeypatch, encoding, ending):
    monkeypatch.setattr(file_source, "PART_BYTES", 1 << 10)
    batch = ["日本語のテキスト", "ソース\n表"] * 60 if encoding == "shift_jis" else TEXTS
    options = f"data.source.encoding={encoding}"

    def write(name, text):
        (tmp_path / (name + ending)).write_bytes(packed(text.encode(encoding), name + ending))
        return tmp_path / (name + ending)

    lines = write("a.jsonl", "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in batch))
    assert _read(_open(tmp_path, "jsonl", lines, options))[0] == batch
    table = write("a.csv", "n,text\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(batch)))
    assert _read(_open(tmp_path, "csv", table, options))[0] == batch
    whole = "\n\n".join(batch)
    for merge in ("false", "true"):
        plain = _open(
            tmp_path,
            "text",
            write("a.txt", whole),
            options,
            f"data.source.merge={merge}",
            "data.source.chunk_chars=100",
        )
        documents_read, bad = _read(plain)
        assert "".join(documents_read) == whole and len(documents_read) > 5 and bad.good == 1


@pytest.mark.parametrize("encoding", ["ascii", "euc_kr", "utf-16"])
def test_what_is_in_another_encoding_is_counted(tmp_path, encoding):
    """Readable lines and records are read, but UTF-16 without a byte order mark is not."""
    options = f"data.source.encoding={encoding}"
    good = 0 if encoding == "utf-16" else 2
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("one", "b\xc3\xa4d\xff", "two")]
    (tmp_path / "a.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
    documents_read, bad = _read(_open(tmp_path, "jsonl", tmp_path / "a.jsonl", options))
    assert len(documents_read) == good and sum(bad.reasons.values()) == 1 and bad.lost_bytes
    (tmp_path / "a.csv").write_bytes("text\none\nb\xff\ntwo\n".encode("latin-1"))
    documents_read, bad = _read(_open(tmp_path, "csv", tmp_path / "a.csv", options))
    assert len(documents_read) == good and sum(bad.reasons.values()) == 1
    (tmp_path / "a.txt").write_bytes(b"\xff\xff text")
    for merge in ("false", "true"):
        documents_read, bad = _read(_open(tmp_path, "text", tmp_path / "a.txt", options, f"data.source.merge={merge}"))
        assert not documents_read and list(bad.reasons) == [f"invalid {encoding}"]


@pytest.mark.parametrize(
    ("encoding", "torn"), [("utf-16", b"\x00\xd8a\x00"), ("utf-7", b"+2AA-"), ("gb18030", b"\xff")]
)
def test_an_incomplete_character_loses_only_its_line(tmp_path, encoding, torn):
    """The character is in the middle of megabytes that are decoded together."""
    lines = [json.dumps({"text": f"{number} é " * 2000}, ensure_ascii=False) + "\n" for number in range(200)]
    whole = [
        line.encode(encoding if not number else encoding.replace("utf-16", "utf-16-le"))
        for number, line in enumerate(lines)
    ]
    whole[100] = whole[100][:20] + torn + whole[100][20:]
    (tmp_path / "a.jsonl").write_bytes(b"".join(whole))
    documents_read, bad = _read(_open(tmp_path, "jsonl", tmp_path / "a.jsonl", f"data.source.encoding={encoding}"))
    assert len(documents_read) == 199 and dict(bad.reasons) == {f"invalid {encoding}": 1}
    assert bad.lost_bytes < 2 * len(whole[100])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "text"])
def test_a_byte_order_mark_is_not_text(tmp_path, kind):
    text = {"jsonl": '{"text": "one"}\n', "csv": "text\none\n", "text": "one"}[kind]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(f"\ufeff{text}".encode("utf-16-le"))
    documents_read, bad = _read(_open(tmp_path, kind, path, "data.source.encoding=utf-16-le"))
    assert documents_read == ["one"] and not bad.reasons


def test_delimiters(tmp_path):
    for name, mark in (("a.csv", ","), ("b.tsv", "\t"), ("c.csv", ";")):
        (tmp_path / name).write_text(f"n{mark}text\n1{mark}found\n")
    assert _read(_open(tmp_path, "csv", f"{tmp_path}/[ab].*"))[0] == ["found", "found"]
    assert _read(_open(tmp_path, "csv", f"{tmp_path}/c.csv", "data.source.delimiter=;"))[0] == ["found"]
    assert _read(_open(tmp_path, "csv", f"{tmp_path}/b.tsv", r"data.source.delimiter=\t"))[0] == ["found"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source.encoding=klingon", "data.source.encoding: 'klingon' is not a text encoding"),
        ("data.source.encoding=base64", "data.source.encoding: 'base64' is not a text encoding"),
        ("data.source.delimiter=ab", "data.source.delimiter: 'ab' is not a single character"),
        ("data.source.kind=parquet", "data.source.delimiter is read only by csv"),
    ],
)
def test_invalid_formats_are_rejected(tmp_path, override, message):
    with pytest.raises(RequestError) as fault:
        _open(tmp_path, "csv", "a", "data.source.delimiter=;", override)
    assert message in str(fault.value) and str(fault.value).startswith("override ")


def test_nested_text_fields(tmp_path):
    records = [
        {"meta": {"body": "within"}},
        {"meta": {"body": "no"}, "meta.body": "exact"},
        {"meta": {}},
        {"meta": "x"},
        {"meta": {"body": 1}},
        ["meta.body"],
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    documents_read, bad = _read(JsonlSource(str(tmp_path), "meta.body"))
    assert documents_read == ["within", "exact"]
    missing, no_text = "field 'meta.body' missing", "field 'meta.body' is a number"
    assert bad.reasons == {missing: 2, no_text: 1, "not a JSON object": 1}


@pytest.mark.parametrize("source", [ParquetSource, HubSource])
def test_nested_columns(tmp_path, source):
    rows = {"n": [1, 2, 3], "meta": [{"body": "a", "n": {"x": "deep"}}, {"body": None, "n": None}, None]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    documents_read, bad = _read(source(str(tmp_path), "meta.body"))
    assert documents_read == ["a"] and bad.reasons == {"no text (null)": 2}
    assert _read(source(str(tmp_path), "meta.n.x"))[0] == ["deep"]
    with pytest.raises(RequestError, match=r"has no column 'meta.nobody'"):
        _read(source(str(tmp_path), "meta.nobody"))
    with pytest.raises(RequestError, match=r"'meta.n' of .* is not text"):
        _read(source(str(tmp_path), "meta.n"))
    (tmp_path / "other").mkdir()
    parquet.write_table(pyarrow.table({**rows, "meta.body": ["x", "y", "z"]}), tmp_path / "other" / "a.parquet")
    assert _read(source(str(tmp_path / "other"), "meta.body"))[0] == ["x", "y", "z"]
