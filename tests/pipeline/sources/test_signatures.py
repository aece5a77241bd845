"""Files of a different format than their names say are reported as what they are."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pyarrow
import pyarrow.parquet as parquet
import pytest
import zstandard

from artefacts.errors import RequestError
from configs.schema.examples import ExamplesSection
from pipeline.examples import chat
from pipeline.examples.rendering import Losses
from pipeline.sources import file_source, signatures
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.csv import CsvSource
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.parallel import ParallelSource
from pipeline.sources.text import TextSource

LINES = b'{"text": "one"}\n{"text": "two"}\n' * 50


def _zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return buffer.getvalue()


def _parquet():
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), buffer)
    return buffer.getvalue()


KINDS = {
    "gzip-compressed": gzip.compress(LINES),
    "zstd-compressed": zstandard.ZstdCompressor().compress(LINES),
    "xz-compressed": lzma.compress(LINES),
    "bzip2-compressed": bz2.compress(LINES),
    "a zip archive": _zip(),
    "parquet": _parquet(),
}
SOURCES = {
    "jsonl": lambda path: JsonlSource(path, "text"),
    "latin": lambda path: JsonlSource(path, "text", "latin-1"),
    "csv": lambda path: CsvSource(path, "text"),
    "txt": lambda path: TextSource(path, 100),
    "merged": lambda path: TextSource(path, 100, merge=True),
    "lines": lambda path: ParallelSource(path, path),
}


def _read(source):
    bad = BadInputs()
    return [document.text for part in source.parts(1) for document in source.read(part, bad)], bad


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_source_names_the_actual_format(tmp_path, monkeypatch, source, kind):
    (tmp_path / f"a.{source}").write_bytes(KINDS[kind])
    for part_bytes in (file_source.PART_BYTES, 64):
        monkeypatch.setattr(file_source, "PART_BYTES", part_bytes)
        documents_read, bad = _read(SOURCES[source](str(tmp_path / f"a.{source}")))
        assert not documents_read and bad.reasons == {f"the file is {kind}": 1} and bad.lost_bytes <= bad.bytes
    with pytest.raises(RequestError) as fault:
        bad.check(0.01, "corpus")
    assert "max_bad_fraction" not in str(fault.value)
    assert str(fault.value).endswith(f": {signatures.HINTS[f'the file is {kind}']}")


def test_instructions_name_the_actual_format(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(KINDS["gzip-compressed"])
    bad = BadInputs()
    section = ExamplesSection(kind="files", path=str(tmp_path))
    assert not chat.read(section, False, str, bad, Losses())
    assert bad.reasons == {"the file is gzip-compressed": 1}


def test_text_that_starts_like_a_parquet_file_is_text(tmp_path):
    (tmp_path / "a.txt").write_text("PAR1S is no parquet. BZh is no bzip2.")
    assert _read(TextSource(str(tmp_path), 0))[0] == ["PAR1S is no parquet. BZh is no bzip2."]


@pytest.mark.parametrize("before", ["", "\n", " \t\r\n\n", "\ufeff", "\ufeff\n "])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_json_array_is_named_after_any_prefix(tmp_path, monkeypatch, before, ending):
    content = (before + json.dumps([{"text": str(number)} for number in range(99)], indent=1)).encode()
    (tmp_path / f"a.json{ending}").write_bytes(gzip.compress(content) if ending else content)
    for part_bytes in (file_source.PART_BYTES, 64):
        monkeypatch.setattr(file_source, "PART_BYTES", part_bytes)
        documents_read, bad = _read(JsonlSource(str(tmp_path), "text"))
        assert not documents_read and bad.reasons == {"a JSON array, not JSON lines": 1} and bad.lost_bytes <= bad.bytes


def test_the_type_of_an_invalid_field_is_reported(tmp_path):
    values = [None, True, 5, 0.5, [1], {"a": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    _, bad = _read(JsonlSource(str(tmp_path), "text"))
    assert bad.reasons == {
        "field 'text' is null": 1,
        "field 'text' is a boolean": 1,
        "field 'text' is a number": 2,
        "field 'text' is a list": 1,
        "field 'text' is an object": 1,
    }


def test_one_skipped_line_does_not_reject_the_file(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(LINES + b"{broken\n")
    _, bad = _read(JsonlSource(str(tmp_path), "text"))
    bad.check(0.01, "a.jsonl")
    assert capsys.readouterr().out == "a.jsonl: skipped 1 of 101 inputs: malformed line (a.jsonl at byte 1600)\n"
