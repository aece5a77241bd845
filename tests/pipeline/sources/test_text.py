"""Plain text: split at paragraphs, at sentences or into windows, merged, and read in blocks or at once."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources import file_source
from pipeline.sources import text as text_module
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.chunking import cut, pieces
from pipeline.sources.text import TextSource
from tests.support.paths import SHARED_DATA
from tests.support.pipeline import corpora


def texts_of(text, chunk, size, overlap=0):
    return [piece.text for piece in pieces([text], chunk, size, overlap)]


def read(source):
    bad = BadInputs()
    documents = [document for part in source.parts(1) for document in source.read(part, bad)]
    assert len({document.id for document in documents}) == len(documents)
    return documents, bad


@pytest.fixture
def in_blocks(monkeypatch):
    """Every file counts as long, and is read in blocks of a few characters."""
    monkeypatch.setattr(text_module, "_BLOCK_CHARS", 7)
    monkeypatch.setattr(text_module, "_CARRIED_BYTES", 50)
    monkeypatch.setattr(file_source, "PART_BYTES", 1)
    monkeypatch.setattr(file_source, "COMPRESSED_PART_BYTES", 1)


@settings(deadline=None)
@given(st.text(alphabet="ab \n", max_size=300), st.integers(0, 40))
def test_cutting_loses_nothing(text, size):
    pieces_cut = list(cut(text, size))
    assert "".join(pieces_cut) == text
    assert all(pieces_cut)
    assert not size or all(len(piece.rstrip("\n")) <= 2 * size + 1 for piece in pieces_cut)


def test_cut_at_paragraph_ends():
    assert list(cut("aaaa\n\nbbbb\n\n\ncccc\ndddd", 7)) == ["aaaa\n\nbbbb\n\n\n", "cccc\ndddd"]
    assert list(cut("aaaa bbbb\ncccc dddd eeee ffff", 7)) == ["aaaa bbbb\n", "cccc dddd ", "eeee ffff"]
    assert list(cut("a" * 20, 7)) == ["a" * 7, "a" * 7, "a" * 6]


def test_cut_at_sentence_ends():
    text = 'He came (see p. 3). "Why?" she asked. It was 3.5 km, e.g. far… Über alles. then more words. End here now.'
    assert texts_of(text, "sentence", 15) == [
        "He came (see p. 3). ",
        '"Why?" she asked. ',
        "It was 3.5 km, e.g. far… ",
        "Über alles. then more words. ",
        "End here now.",
    ]
    assert texts_of("我来了。你呢？他也来。" * 2, "sentence", 4) == [
        "我来了。",
        "你呢？他也来。",
        "我来了。",
        "你呢？他也来。",
    ]
    assert texts_of("A heading\n\nbegins in small letters and goes on", "sentence", 8)[0] == "A heading\n\n"


def test_windows_overlap():
    assert texts_of("abcdefghij", "window", 4, 1) == ["abcd", "defg", "ghij"]
    assert texts_of("abcdefghijk", "window", 4, 1) == ["abcd", "defg", "ghij", "jk"]
    assert texts_of("abc", "window", 4, 3) == ["abc"]
    assert texts_of("", "window", 4) == []


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text(alphabet='aB. \n"。', min_size=1, max_size=25), max_size=25),
    st.sampled_from(["paragraph", "sentence", "window"]),
    st.integers(0, 12),
    st.data(),
)
def test_blocks_change_nothing(blocks, chunk, size, data):
    overlap = data.draw(st.integers(0, size - 1)) if chunk == "window" and size else 0
    whole = "".join(blocks)
    pieces_cut = list(pieces(blocks, chunk, size, overlap))
    assert pieces_cut == list(pieces([whole], chunk, size, overlap))
    assert all(whole[piece.offset :].startswith(piece.text) for piece in pieces_cut)
    if not overlap:
        assert "".join(piece.text for piece in pieces_cut) == whole


@pytest.mark.parametrize("chunk", ["paragraph", "sentence", "window"])
def test_a_long_file_gives_the_same_documents(tmp_path, request, chunk):
    for number, ending in enumerate(["", ".gz"]):
        content = "\r\n\r\n".join(corpora.texts(9, seed=number)).encode("utf-16")
        (tmp_path / f"{number}.txt{ending}").write_bytes(gzip.compress(content) if ending else content)
    source = TextSource(str(tmp_path), 300, chunk, 20 if chunk == "window" else 0)
    whole, bad = read(source)
    request.getfixturevalue("in_blocks")
    assert read(source) == (whole, bad) and bad.good == 2
    assert len(list(source.parts(1))) > 10


def test_damage_ends_a_long_file(tmp_path, in_blocks):
    (tmp_path / "a.txt").write_bytes(b"one two three four five six\xff seven")
    packed = gzip.compress(bytes(range(32, 127)) * 200)
    (tmp_path / "b.txt.gz").write_bytes(packed[: len(packed) - 9])
    (tmp_path / "c.txt").write_text("whole")
    documents, bad = read(TextSource(str(tmp_path), 10))
    assert [document.source for document in documents][-1] == "c.txt"
    assert bad.reasons == {"invalid UTF-8": 1, "unreadable file": 1} and bad.good == 3
    assert any(document.source == "b.txt.gz" for document in documents)


def test_merged_files_are_one_text(tmp_path, monkeypatch):
    for number, content in enumerate(["one", "two\n", "three\n\n\n", "", "four"]):
        (tmp_path / f"{number}.txt").write_text(content)
    documents, bad = read(TextSource(str(tmp_path), 0, merge=True))
    assert [document.text for document in documents] == ["one\n\ntwo\n\nthree\n\n\nfour"] and bad.good == 5
    source = TextSource(str(tmp_path), 5, "window", 1, merge=True)
    documents, _ = read(source)
    assert [document.text for document in documents] == ["one\n\n", "\ntwo\n", "\n\nthr", "ree\n\n", "\n\nfou", "ur"]
    assert [document.source for document in documents] == ["0.txt", "0.txt", "1.txt", "2.txt", "2.txt", "4.txt"]
    assert [document.id for document in documents] == [f"text:merged:{number}" for number in range(6)]
    monkeypatch.setattr(text_module, "_CARRIED_BYTES", 1)
    assert read(source)[0] == documents and len(list(source.parts(1))) == 6


def test_merged_speeches():
    folder = SHARED_DATA / "inaugural"
    if not folder.exists():
        pytest.skip("no inaugural folder next to the checkout")
    apart, _ = read(TextSource(str(folder), 4000, "sentence"))
    merged, bad = read(TextSource(str(folder), 4000, "sentence", merge=True))
    assert bad.good == len({document.source for document in apart})
    together = "".join(document.text for document in merged)
    assert len(merged) > 100 and all(document.text in together for document in apart)
    ended = [document.text.rstrip()[-1] in ".!?\"'”)…-" for document in merged[:-1]]
    assert sum(ended) > 0.95 * len(ended)


@pytest.mark.parametrize("size", [0, 100])
def test_an_empty_file_is_an_empty_document(tmp_path, size):
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.txt").write_bytes(b"text")
    documents, bad = read(TextSource(str(tmp_path), size))
    assert [document.text for document in documents] == ["", "text"] and bad.good == 2
