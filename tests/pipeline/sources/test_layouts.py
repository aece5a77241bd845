"""Every layout gives the same texts. All readers see the same parts, and can skip them."""

import pickle
import random
import tracemalloc

import pytest

from pipeline.sources import file_source, openwebtext, text
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.registry import open_source
from tests.support.paths import SHARED_DATA
from tests.support.pipeline import corpora

TEXTS = [
    *corpora.texts(90, seed=3, sentences=4),
    "  \n ",
    'quotes "and", commas\nand lines',
    "NUL \0 within",
    "ü € 🐟 \u2028 \u0085",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Kind -> recipe of the texts in that layout."""
    layouts = {}

    def recipe(kind):
        if kind not in layouts:
            folder = tmp_path_factory.mktemp(kind)
            keys = corpora.write(kind, TEXTS, folder / "source")
            layouts[kind] = corpora.recipe(folder, *(f"{key}={value}" for key, value in keys.items()))
        return layouts[kind]

    return recipe


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few documents."""
    monkeypatch.setattr(file_source, "PART_BYTES", 3000)
    monkeypatch.setattr(file_source, "COMPRESSED_PART_BYTES", 3000)
    monkeypatch.setattr(openwebtext, "_PART_BYTES", 3000)
    monkeypatch.setattr(text, "_CARRIED_BYTES", 3000)


def _source(recipe):
    return open_source(recipe.data.source, recipe)


def _read(source, parts):
    bad = BadInputs()
    return [list(source.read(part, bad)) for part in parts], bad


@pytest.mark.parametrize("kind", corpora.KINDS)
def test_every_layout_gives_the_same_texts(written, small_parts, kind):
    source = _source(written(kind))
    read, bad = _read(source, source.parts(1))
    documents = [document for part in read for document in part]
    assert [document.text for document in documents] == TEXTS
    assert len({document.id for document in documents}) == len(TEXTS)
    assert all(document.id.startswith(source_kind(kind)) for document in documents)
    assert all(not document.source.startswith("/") for document in documents)
    assert bad.good == len(TEXTS) and not bad.reasons


def source_kind(kind):
    return "openwebtext:" if kind == "7z" or kind.startswith("openwebtext") else f"{kind.partition('.')[0]}:"


@pytest.mark.parametrize("kind", corpora.KINDS)
def test_a_restart_reads_the_remaining_parts(written, small_parts, kind):
    first, again = _source(written(kind)), _source(written(kind))
    parts = list(first.parts(1))
    assert first.partition_scheme == again.partition_scheme and first.inputs() == again.inputs()
    assert len(parts) > 1 or kind in ("jsonl.gz", "jsonl.zst", "jsonl.xz", "csv")
    half = len(parts) // 2
    before, _ = _read(first, parts[:half])
    later = [part for number, part in enumerate(again.parts(2)) if number >= half]
    assert later == parts[half:]
    elsewhere = pickle.loads(pickle.dumps(again))
    after, _ = _read(elsewhere, pickle.loads(pickle.dumps(later)))
    assert [document.text for part in before + after for document in part] == TEXTS
    assert _read(again, later)[0] == after


@pytest.mark.parametrize("kind", corpora.KINDS)
def test_the_parts_cover_the_bytes_of_the_source(written, small_parts, kind):
    source = _source(written(kind))
    size = source.size(1)
    assert size and abs(sum(part.size for part in source.parts(1)) - size) <= 0.02 * size


@pytest.mark.parametrize("kind", ["hub", "7z", "openwebtext-tar-xz", "parquet", "csv", "text"])
def test_real_pages(tmp_path, kind):
    folder = SHARED_DATA
    if not folder.exists():
        pytest.skip("no data folder next to the checkout")
    source = JsonlSource(str(folder / "openwebtext-500.jsonl.zst"), "text")
    read, _ = _read(source, source.parts(1))
    strange = (folder / "naughty-strings.txt").read_text(encoding="utf-8").split("\n")
    texts = [document.text for document in read[0]] + ["\n".join(strange), *strange[:120]]
    keys = corpora.write(kind, texts, tmp_path / "source")
    source = _source(corpora.recipe(tmp_path, *(f"{key}={value}" for key, value in keys.items())))
    read, bad = _read(source, source.parts(1))
    # Newlines of text files are normalized.
    assert kind == "text" or [document.text for part in read for document in part] == texts
    assert sum(map(len, read)) == len(texts)
    assert bad.good == len(texts) and not bad.reasons


@pytest.mark.parametrize("kind", ["openwebtext-tar-xz", "7z"])
def test_a_solid_archive_is_never_completely_in_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(openwebtext, "_PART_BYTES", 200_000)
    monkeypatch.setattr("pipeline.sources.storage.seven_zip._WAITING_BYTES", 200_000)
    # This text does not compress well. A block of the archive must not contain all of it.
    many = [random.Random(at).randbytes(30_000).hex() for at in range(110)]
    keys = corpora.write(kind, many, tmp_path / "source")
    source = openwebtext.OpenWebTextSource(keys["data.source.path"])
    bad = BadInputs()
    tracemalloc.start()
    for number, part in enumerate(source.parts(1)):
        if not number:
            # The headers of a .7z archive need 16 MB to decompress, whatever their size.
            tracemalloc.reset_peak()
        for _ in source.read(part, bad):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bad.good == 110 and sum(map(len, many)) == 6_600_000
    assert peak < 6_000_000


def test_an_abandoned_solid_archive_leaves_no_thread(tmp_path, monkeypatch):
    import threading

    monkeypatch.setattr(openwebtext, "_PART_BYTES", 2000)
    monkeypatch.setattr("pipeline.sources.storage.seven_zip._WAITING_BYTES", 2000)
    keys = corpora.write("7z", TEXTS, tmp_path)
    before = threading.active_count()
    parts = openwebtext.OpenWebTextSource(keys["data.source.path"]).parts(1)
    next(parts)
    parts.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("method", ["LZMA", "LZMA2", "BZIP2", "DEFLATE", "COPY", "ZSTD"])
def test_7z_with_every_compression_method(tmp_path, method):
    import py7zr

    filters = [{"id": getattr(py7zr, f"FILTER_{method}")}]
    # It is written in two steps, so it has two folders, compressed separately; a repeated name is another member.
    for texts, mode in ((TEXTS[:60], "w"), (TEXTS[60:], "a")):
        with py7zr.SevenZipFile(tmp_path / "a.7z", mode, filters=filters) as archive:
            for number, page in enumerate(texts):
                archive.writestr(page.encode(), f"{min(number, 20)}.txt")
    read, bad = _read(source := openwebtext.OpenWebTextSource(str(tmp_path)), source.parts(1))
    documents = [document for part in read for document in part]
    assert [document.text for document in documents] == TEXTS and not bad.reasons
    assert len({document.id for document in documents}) == len(TEXTS)


def test_parts_are_small_without_their_list_of_files(written):
    source = _source(written("openwebtext-folder"))
    list(source.parts(1))
    assert len(pickle.dumps(source)) < 300
