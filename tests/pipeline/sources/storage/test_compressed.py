"""Compressed files are read up to the damage and no further, in all formats and by all readers."""

import gzip
import io
import json
import lzma

import pytest
import zstandard

from configs.schema.examples import ExamplesSection
from pipeline.examples import chat
from pipeline.examples.rendering import Losses
from pipeline.sources import text
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.csv import CsvSource
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.openwebtext import OpenWebTextSource
from pipeline.sources.parallel import ParallelSource
from pipeline.sources.storage import compressed
from pipeline.sources.storage.compressed import DAMAGE, decompressed
from pipeline.sources.text import TextSource
from tests.support.pipeline import corpora

TEXTS = corpora.texts(60, seed=21)
ENDINGS = (".gz", ".xz", ".zst")


def drained(content, ending):
    """Return the content that was read, the damage, and the position in the stored bytes."""
    stored = io.BytesIO(content)
    stream = decompressed(stored, f"a{ending}")
    decompressed_bytes = bytearray()
    try:
        while block := stream.read1(1 << 20):
            decompressed_bytes += block
    except DAMAGE as error:
        return bytes(decompressed_bytes), error, stored.tell()
    return bytes(decompressed_bytes), None, stored.tell()


def in_blocks(content, ending, lines=40):
    """Content in which groups of lines can be decompressed independently."""
    pieces = content.splitlines(keepends=True)
    blocks = [b"".join(pieces[at : at + lines]) for at in range(0, len(pieces), lines)]
    if ending == ".zst":
        compressor = zstandard.ZstdCompressor().compressobj()
        return b"".join(
            compressor.compress(block) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for block in blocks
        ) + (compressor.flush())
    return b"".join(corpora.packed(block, ending) for block in blocks)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", [0, 5, 3000, 400_000])
def test_complete_files_with_one_or_several_members(ending, size):
    content = b"".join(b"line %d\n" % number for number in range(size // 8))
    packed = corpora.packed(content, ending)
    assert drained(packed, ending)[:2] == (content, None)
    assert drained(packed * 3, ending)[:2] == (content * 3, None)
    if ending != ".zst":
        assert drained(packed + bytes(1000), ending)[:2] == (content, None)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("size", [5, 3000, 400_000])
def test_trailing_garbage_loses_nothing_before_it(ending, size):
    content = b"".join(b"line %d\n" % number for number in range(size // 8))
    packed = corpora.packed(content, ending)
    content_read, error, at = drained(packed + b"GARBAGE" * 20, ending)
    assert content_read == content and error is not None and len(packed) <= at < len(packed) + 10


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("cut", [1, 40, 60, 99])
def test_everything_before_a_truncation_is_read(ending, cut):
    lines = [b"%d: %s\n" % (number, str(number**9).encode()) for number in range(4000)]
    packed = in_blocks(b"".join(lines), ending)
    packed = packed[: len(packed) * cut // 100]
    content_read, error, at = drained(packed, ending)
    assert error is not None and at == len(packed) and b"".join(lines).startswith(content_read)
    # Members, or blocks, that are complete are read.
    assert len(content_read) > len(b"".join(lines)) * cut // 100 * 0.9 - 2000


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_that_are_not_in_the_named_compression(ending):
    for content in (b"", b"x", b"plain text" * 9):
        content_read, error, _ = drained(content, ending)
        assert not content_read and error is not None
    assert str(drained(b"", ending)[1]) == "it is empty"


def _read(source):
    bad = BadInputs()
    return [document.text for part in source.parts(1) for document in source.read(part, bad)], bad


def _content(kind):
    if kind == "csv":
        return b"text\n" + b"".join(b'"%s"\n' % text.encode() for text in TEXTS)
    if kind == "jsonl":
        return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in TEXTS)
    if kind == "tar":
        return corpora.tar_of(corpora.pages(TEXTS))
    return "\n\n".join(TEXTS).encode()


_SOURCES = {
    "csv": lambda path: CsvSource(path, "text"),
    "jsonl": lambda path: JsonlSource(path, "text"),
    "tar": OpenWebTextSource,
    "txt": lambda path: TextSource(path, 300),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", _SOURCES)
@pytest.mark.parametrize("harm", ["garbage", "cut"])
def test_every_source_keeps_the_text_before_damage(tmp_path, monkeypatch, kind, ending, harm):
    path = tmp_path / f"a.{kind}{ending}"
    packed = in_blocks(_content(kind), ending, 4)
    path.write_bytes(packed)
    source = _SOURCES[kind](str(path))
    whole, _ = _read(source)
    # Text does not show that it is cut off.
    path.write_bytes(packed + b"GARBAGE" * 20 if harm == "garbage" else packed[: len(packed) * 3 // 4])
    documents_read, bad = _read(_SOURCES[kind](str(path)))
    if harm == "garbage":
        # Nothing is read after the end of a tar archive.
        assert documents_read == whole and sum(bad.reasons.values()) == (kind != "tar") and bad.lost_bytes < 200
    else:
        assert (
            len(whole) // 2 < len(documents_read) < len(whole)
            and documents_read[:-2] == whole[: len(documents_read) - 2]
        )
        assert bad.reasons == {"unreadable file": 1}
    bad.check(1.0, "corpus")
    if kind == "txt":
        monkeypatch.setattr(text.file_source, "COMPRESSED_PART_BYTES", 1)
        assert _read(_SOURCES[kind](str(path)))[0] == documents_read


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_encodings_keep_the_text_before_damage(tmp_path, ending):
    content = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode("utf-16")
    (tmp_path / f"a.jsonl{ending}").write_bytes(corpora.packed(content, ending) + b"GARBAGE" * 20)
    documents_read, bad = _read(JsonlSource(str(tmp_path), "text", "utf-16"))
    assert documents_read == TEXTS and bad.reasons == {"unreadable file": 1}


@pytest.mark.parametrize("ending", ENDINGS)
def test_parallel_files_and_instructions_keep_the_text_before_damage(tmp_path, ending):
    lines = [text.replace("\n", " ") for text in TEXTS]
    for name in ("a", "b"):
        (tmp_path / f"{name}{ending}").write_bytes(
            corpora.packed("".join(line + "\n" for line in lines).encode(), ending) + b"GARBAGE" * (name == "b")
        )
    documents_read, bad = _read(ParallelSource(str(tmp_path / f"a{ending}"), str(tmp_path / f"b{ending}")))
    assert documents_read == lines and bad.reasons == {"unreadable file": 1}
    records = "".join(json.dumps({"instruction": line, "output": "x"}) + "\n" for line in lines)
    (tmp_path / f"i.jsonl{ending}").write_bytes(corpora.packed(records.encode(), ending) + b"GARBAGE")
    bad = BadInputs()
    section = ExamplesSection(kind="files", path=str(tmp_path / f"i.jsonl{ending}"))
    text = chat.read(section, False, str, bad, Losses())
    assert len(text) == bad.good == len(lines) and bad.reasons == {"unreadable file": 1}


def test_late_damage_in_a_long_file_loses_nothing_before_it(monkeypatch):
    monkeypatch.setattr(compressed, "_INPUT_BYTES", 512)
    monkeypatch.setattr(compressed, "_CAREFUL_INPUT_BYTES", 64)
    content = b"".join(b"%d\n" % (number**7) for number in range(30_000))
    for ending, packed in ((".gz", gzip.compress(content)), (".xz", lzma.compress(content, preset=0))):
        content_read, error, at = drained(packed + b"GARBAGE", ending)
        assert content_read == content and len(packed) < at <= len(packed) + 7 and "other data after" in str(error)
