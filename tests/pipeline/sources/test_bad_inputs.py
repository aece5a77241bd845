"""Damaged input is counted with its position, everything else is read, and all readings agree."""

import csv as standard_csv
import io
import json
import lzma
import tarfile
from dataclasses import replace

import pyarrow
import pyarrow.parquet as parquet
import pytest

from artefacts.errors import RequestError
from pipeline.sources import jsonl as jsonl_module
from pipeline.sources import openwebtext
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.csv import CsvSource
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.openwebtext import OpenWebTextSource
from pipeline.sources.parquet import ParquetSource
from pipeline.sources.text import TextSource
from tests.support.pipeline import corpora
from tests.support.pipeline.corpora import packed, pages, tar_of

TEXTS = corpora.texts(40, seed=8)


def read(source):
    """Return the documents and counts of two readings, which must agree."""
    readings = []
    for _ in range(2):
        bad = BadInputs()
        documents = [document for part in source.parts(1) for document in source.read(part, bad)]
        assert len({document.id for document in documents}) == len(documents)
        readings.append((documents, bad))
    assert readings[0] == readings[1]
    return readings[0]


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


def tar_with(*infos):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, content in infos:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name, kind=tarfile.REGTYPE, content=b"a page", target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, content


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_compressed_lines(tmp_path, ending, harm):
    content = packed("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 9).encode(), ending)
    broken = content[: len(content) * 2 // 3] if harm == "cut" else flipped(content, len(content) * 2 // 3)
    (tmp_path / f"a.jsonl{ending}").write_bytes(broken)
    (tmp_path / f"b.jsonl{ending}").write_bytes(packed(b'{"text": "whole"}\n', ending))
    documents, bad = read(JsonlSource(str(tmp_path), "text"))
    assert sum(bad.reasons.values()) == bad.reasons["unreadable file"] == 1 and documents[-1].text == "whole"
    # A flipped byte may decode to something else, which only the checksum at the end detects.
    if "checksum" not in bad.examples["unreadable file"][0]:
        assert [d.text for d in documents[:-1]] == (TEXTS * 9)[: len(documents) - 1]


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl_module, "MOST_BYTES", 64)
    content = b'{"text": "one"}\n' + b"x" * 300 + b'\n{"text": "two"}\n' + b"y" * 64
    (tmp_path / "a.jsonl").write_bytes(content)
    documents, bad = read(JsonlSource(str(tmp_path), "text"))
    assert [document.text for document in documents] == ["one", "two"]
    assert bad.reasons == {"a line longer than 64 B": 2}


@pytest.mark.parametrize("layout", ["openwebtext-folder", "openwebtext-tar-xz", "openwebtext-subsets"])
@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_an_inner_archive(tmp_path, monkeypatch, layout, harm):
    whole = corpora.subsets(TEXTS)
    name, content = whole[2]
    broken = content[: len(content) // 2] if harm == "cut" else flipped(content, len(content) // 2)
    monkeypatch.setattr(corpora, "subsets", lambda texts: [*whole[:2], (name, broken), *whole[3:]])
    keys = corpora.write(layout, TEXTS, tmp_path / "source")
    documents, bad = read(OpenWebTextSource(keys["data.source.path"]))
    texts = [document.text for document in documents]
    assert texts[:14] == TEXTS[:14] and texts[-19:] == TEXTS[21:]
    assert bad.reasons == {"unreadable file": 1} and name in bad.examples["unreadable file"][0]


@pytest.mark.parametrize("harm", ["cut", "flip"])
@pytest.mark.parametrize("layout", ["openwebtext-tar-xz", "openwebtext-subsets", "7z"])
def test_an_outer_archive(tmp_path, monkeypatch, layout, harm):
    monkeypatch.setattr(openwebtext, "_PART_BYTES", 3000)
    keys = corpora.write(layout, TEXTS, tmp_path / "source")
    path = next(path for path in (tmp_path / "source").rglob("*.*") if path.is_file())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if harm == "cut" else flipped(content, len(content) // 2))
    documents, bad = read(OpenWebTextSource(keys["data.source.path"]))
    texts = [document.text for document in documents]
    assert set(texts) < set(TEXTS) and sum(bad.reasons.values()) == 1
    if harm == "cut" and layout != "7z":
        assert len(texts) > 5 and texts == TEXTS[: len(texts)]


def test_a_damaged_header_is_not_the_end_of_a_tar(tmp_path):
    plain = tar_of(pages(["one", "two", "three"]))
    (tmp_path / "a.tar").write_bytes(flipped(plain, 2 * 512 + 10))
    (tmp_path / "b_data.xz").write_bytes(lzma.compress(flipped(plain, 2 * 512 + 10)))
    documents, bad = read(OpenWebTextSource(str(tmp_path)))
    assert [document.text for document in documents] == ["one", "one"]
    assert bad.reasons == {"unreadable file": 2} and "byte 1024" in bad.examples["unreadable file"][0]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.xz", "a.tar.gz", "a.tar.zst", "a_data.xz"])
def test_links_devices_and_names_that_point_outside(tmp_path, name):
    content = tar_with(
        member("/etc/passwd.txt"),
        member("../../up.txt"),
        member("same.txt"),
        member("same.txt"),
        member("long/" * 40 + "name.txt"),
        member("folder", tarfile.DIRTYPE, b""),
        member("link.txt", tarfile.SYMTYPE, b"", "/etc/passwd"),
        member("hard.txt", tarfile.LNKTYPE, b"", "same.txt"),
        member("pipe.txt", tarfile.FIFOTYPE, b""),
        member("device.txt", tarfile.CHRTYPE, b""),
        member("README", content=b"passed over"),
        member("empty.txt", content=b""),
        member("latin.txt", content=b"caf\xe9"),
        member("last.txt"),
    )
    (tmp_path / name).write_bytes(packed(content, name))
    documents, bad = read(OpenWebTextSource(str(tmp_path)))
    names = [document.id.split("/", 1)[1].rpartition(":")[0] for document in documents]
    assert names == [
        "etc/passwd.txt",
        "up.txt",
        "same.txt",
        "same.txt",
        "long/" * 40 + "name.txt",
        "empty.txt",
        "last.txt",
    ]
    assert bad.reasons == {"not a regular file": 4, "invalid UTF-8": 1} and bad.good == 7
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_long_names_in_posix_format(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "all"}) as archive:
        for name in ("ü" * 120 + ".txt", "x/" * 300 + "y.txt"):
            archive.addfile(tarfile.TarInfo(name))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    documents, bad = read(OpenWebTextSource(str(tmp_path)))
    names = [document.id.removeprefix("openwebtext:a.tar/").rpartition(":")[0] for document in documents]
    assert names == ["ü" * 120 + ".txt", "x/" * 300 + "y.txt"] and not bad.reasons


@pytest.mark.parametrize("name", ["a.tar", "a.tar.xz", "a_data.xz", "a.7z"])
@pytest.mark.parametrize("content", [b"", b"\0" * 5, b"plainly something else" * 100])
def test_files_that_are_not_archives(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    documents, bad = read(OpenWebTextSource(str(tmp_path)))
    assert not documents and bad.reasons == {"unreadable file": 1}


def test_a_link_and_an_inner_archive_in_7z(tmp_path):
    import py7zr

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("one")
    (tmp_path / "in" / "b.txt").symlink_to("a.txt")
    (tmp_path / "in" / "c.txt").write_text("")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as archive:
        archive.writeall(tmp_path / "in", "in")
        archive.writestr(corpora.subsets(TEXTS[:5])[0][1], "urlsf_subset00-0_data.xz")
        archive.writestr(b"caf\xe9", "d.txt")
    documents, bad = read(OpenWebTextSource(str(tmp_path)))
    assert sorted(document.text for document in documents) == sorted(["one", "", *TEXTS[:5]])
    assert bad.reasons == {"not a regular file": 1, "invalid UTF-8": 1}


def test_7z_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a.7z").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "py7zr", None)
    with pytest.raises(RequestError, match="pip install py7zr"):
        list(OpenWebTextSource(str(tmp_path)).parts(1))


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_parquet(tmp_path, harm):
    keys = corpora.write("parquet", TEXTS, tmp_path / "source")
    path = tmp_path / "source" / "000.parquet"
    content = path.read_bytes()
    harmed = {"cut": content[:-20], "flip": flipped(content, len(content) // 3), "empty": b""}
    path.write_bytes(harmed[harm])
    documents, bad = read(ParquetSource(keys["data.source.path"], "text"))
    texts = [document.text for document in documents]
    if harm != "flip":
        assert texts == TEXTS[21:] and bad.reasons == {"unreadable file": 1}
        return
    # Without page checksums, Arrow detects a changed byte only by the compression or the encoding of the text.
    assert len(texts) + 21 >= len(TEXTS) - 21 and texts[-19:] == TEXTS[21:]


def test_parquet_values_that_are_not_text(tmp_path):
    text = pyarrow.array([b"good", None, b"caf\xe9", b"end"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    view = pyarrow.Array.from_buffers(pyarrow.string(), 4, text.buffers(), null_count=1)
    parquet.write_table(pyarrow.table({"text": view}), tmp_path / "b.parquet")
    parquet.write_table(pyarrow.table({"text": pyarrow.array(["x", "y", "x"]).dictionary_encode()}), tmp_path / "c.pq")
    documents, bad = read(ParquetSource(str(tmp_path), "text"))
    assert [document.text for document in documents] == ["good", "end", "good", "end", "x", "y", "x"]
    assert bad.reasons == {"no text (null)": 2, "invalid UTF-8": 2} and "row 2" in bad.examples["invalid UTF-8"][0]


def test_a_missing_column_is_rejected_with_a_list_of_columns(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(RequestError, match=r"no column 'text'; its columns are: body \(string\), n \(int64\)"):
        read(ParquetSource(str(tmp_path), "text"))
    with pytest.raises(RequestError, match=r"'n' of a.parquet is not text"):
        read(ParquetSource(str(tmp_path), "n"))
    (tmp_path / "a.csv").write_text("body,n\nx,1\n")
    with pytest.raises(RequestError, match="no column 'text'; its columns are: body, n"):
        read(CsvSource(str(tmp_path), "text"))


def test_csv(tmp_path):
    buffer = io.StringIO()
    writer = standard_csv.writer(buffer)
    writer.writerows([["n", "text"], [1, "z" * 200_000], [2, 'said "so",\nand left'], [3, "ü"], [4, ""]])
    lines = b'5\n\n6,"open" quote\n7,caf\xe9\n8,NUL \0\n9,last\n10,"never closed\n'
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode() + lines)
    (tmp_path / "b.tsv.gz").write_bytes(packed(b"text\tn\none\t1\n", ".gz"))
    (tmp_path / "c.csv").write_bytes(b"")
    documents, bad = read(CsvSource(str(tmp_path), "text"))
    assert [document.text for document in documents] == [
        "z" * 200_000,
        'said "so",\nand left',
        "ü",
        "",
        "NUL \0",
        "last",
        "one",
    ]
    assert bad.reasons == {"a record with too few fields": 1, "malformed record": 2, "invalid UTF-8": 1}


def test_csv_records_with_more_fields_than_the_header(tmp_path):
    (tmp_path / "a.csv").write_text("n,text\n1,whole,,\n2,cut, here\n3,last\n")
    documents, bad = read(CsvSource(str(tmp_path), "text"))
    assert [document.text for document in documents] == ["whole", "last"]
    assert bad.reasons == {"a record with too many fields": 1}
    with pytest.raises(
        RequestError,
        match=r"33.3% of the inputs\), above .*: set data\.sources\.web\.delimiter, or quote .*, or raise",
    ):
        bad.check(0.1, "corpus", "data.sources.web")


@pytest.mark.parametrize(("mark", "shown"), [(";", ";"), ("\t", r"\t"), ("|", "|")])
def test_a_header_of_another_delimiter(tmp_path, mark, shown):
    (tmp_path / "a.csv").write_text(f"n{mark}text\n1{mark}x\n")
    with pytest.raises(RequestError) as fault:
        read(CsvSource(str(tmp_path), "text"))
    assert str(fault.value).endswith(f"set data.source.delimiter='{shown}')")


def test_the_message_names_a_key_to_change(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    _, bad = read(TextSource(str(tmp_path), 0))
    with pytest.raises(RequestError) as fault:
        bad.check(0.01, "corpus")
    hint = ": set data.source.encoding (such as latin-1; for text, jsonl, csv and parallel)"
    assert str(fault.value).endswith(hint)


def test_a_document_of_50_mb(tmp_path):
    long = ("A long line of text. " * 500 + "\n") * 5000
    for kind in ("jsonl.zst", "parquet", "csv", "openwebtext-folder"):
        keys = corpora.write(kind, [long, "short"], tmp_path / kind)
        source_class = {"jsonl": JsonlSource, "parquet": ParquetSource, "csv": CsvSource}.get(keys["data.source.kind"])
        path = keys["data.source.path"]
        source = source_class(path, "text") if source_class else OpenWebTextSource(path)
        bad = BadInputs()
        documents_read = [document.text for part in source.parts(1) for document in source.read(part, bad)]
        assert documents_read == [long, "short"] and not bad.reasons


@pytest.mark.parametrize(
    "source",
    [JsonlSource("", "x"), CsvSource("", "x"), ParquetSource("", "x"), OpenWebTextSource(""), TextSource("", 0)],
    ids=lambda source: type(source).__name__,
)
def test_a_folder_without_a_match(tmp_path, source):
    (tmp_path / "other.bin").write_bytes(b"x")
    moved = replace(source, path=str(tmp_path))
    with pytest.raises(RequestError, match=f"has no file ending in .*{source.endings[-1]}"):
        moved.inputs()


def test_the_first_places_are_kept_and_three_are_shown(capsys):
    parts = [BadInputs(), BadInputs()]
    for number in range(150):
        parts[number % 2].add("odd", f"place {number}")
    whole = BadInputs(good=9999)
    for part in parts:
        whole.merge(json.loads(json.dumps(part.dump())))
    assert whole.reasons == {"odd": 150} and len(whole.examples["odd"]) == 100
    assert whole.examples["odd"][:2] == ["place 0", "place 2"]
    whole.check(0.02, "corpus")
    assert capsys.readouterr().out == "corpus: skipped 150 of 10,149 inputs: odd (place 0; place 2; place 4)\n"
    with pytest.raises(RequestError, match=r"150 of 10,149 inputs .* data.max_bad_fraction \(0.01\)"):
        whole.check(0.01, "corpus")
