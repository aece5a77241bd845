"""C code is compiled only once, even by concurrent processes, and is optional."""

import shutil
import subprocess
import sys

import pyarrow
import pytest

from artefacts import c_library
from configs.load import load_recipe
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import RECIPE, texts
from tokenizer.bpe import BpeTokenizer
from tokenizer.train import _fit
from tokenizer.word_cache import _SOURCE

_START = (
    "import sys; from pathlib import Path; from artefacts import c_library; print(c_library.library(Path(sys.argv[1])))"
)

compiles = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder for compiled code, with nothing loaded or reported before."""
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv(c_library._REPORTED, "1")
    monkeypatch.delenv(c_library._REPORTED)
    monkeypatch.delenv("CC", raising=False)
    c_library.library.cache_clear()
    yield tmp_path / "cache" / "native"
    c_library.library.cache_clear()


def encoded_without(trained_model, capsys):
    tokenizer = BpeTokenizer(trained_model)
    documents = [*texts(3), "\u2581 é\x00", ""]
    for end in (True, False):
        ids, lengths = tokenizer.encode_column(pyarrow.array(documents), end=end)
        closing = [tokenizer.end_of_text_id] * end
        assert ids.tolist() == [token for text in documents for token in (*tokenizer.encode(text), *closing)]
        assert lengths.tolist() == [len(tokenizer.encode(text)) + end for text in documents]
    BpeTokenizer(trained_model).encode_column(pyarrow.array(documents))
    return capsys.readouterr().err.splitlines()


@pytest.fixture(scope="module")
def model():
    """A small trained SentencePiece model."""
    return _fit(texts(60), load_recipe(RECIPE, ["tokenizer.vocab_size=400"]))


def test_no_compiler(cache, model, monkeypatch, capsys):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert encoded_without(model, capsys) == [
        "word_cache.c is not compiled (no C compiler (no-such-compiler)): slower without it"
    ]
    assert not cache.exists()


def test_a_compiler_that_fails(cache, model, tmp_path, monkeypatch, capsys):
    script = tmp_path / "cc"
    compiling = "echo 'cannot open crt1.o' >&2; echo more >&2; exit 1"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{compiling}\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    output = encoded_without(model, capsys)
    assert output == ["word_cache.c is not compiled (cannot open crt1.o): slower without it"]
    assert not list(cache.rglob(".building-*"))


@compiles
def test_processes_compile_at_once(cache):
    line = [sys.executable, "-c", _START, str(_SOURCE)]
    started = [subprocess.Popen(line, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for process in started:
        output, errors = process.communicate()
        assert process.returncode == 0 and b"CDLL" in output and not errors
    assert [path.name for path in cache.rglob("*") if path.is_file()] == ["word_cache.so"]
    first = next(cache.rglob("*.so")).stat()
    assert c_library.library(_SOURCE) is not None
    assert next(cache.rglob("*.so")).stat().st_mtime_ns == first.st_mtime_ns


@compiles
def test_a_damaged_library_is_compiled_again(cache):
    damaged = cache / c_library._key(["cc"], _SOURCE, ()) / "word_cache.so"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"half")
    assert c_library.library(_SOURCE) is not None
    assert damaged.stat().st_size > 1000


@compiles
def test_a_cache_that_cannot_be_written(cache, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "file"))
    assert c_library.library(_SOURCE) is not None
    assert [path.name for path in (tmp_path / "own").rglob("*.so")] == ["word_cache.so"]
    c_library.library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert c_library.library(_SOURCE) is not None
    assert not capsys.readouterr().err


@compiles
def test_code_for_one_processor_is_not_used_by_another(cache, monkeypatch):
    plain, native = c_library._key(["cc"], _SOURCE, ()), c_library._key(["cc"], _SOURCE, ("-march=native",))
    monkeypatch.setattr(c_library, "_instructions", lambda: b"flags: of another")
    assert c_library._key(["cc"], _SOURCE, ()) == plain
    assert c_library._key(["cc"], _SOURCE, ("-march=native",)) not in (native, plain)


@compiles
def test_compiler_errors_are_reported_once(cache, tmp_path, capsys):
    for name in ("first.c", "second.c"):
        (tmp_path / name).write_text("int f(void) { return missing; }")
        assert c_library.library(tmp_path / name) is None
        c_library.library.cache_clear()
        assert c_library.library(tmp_path / name) is None
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["first.c", "second.c"]
    assert all("error:" in line and "missing" in line for line in lines)
