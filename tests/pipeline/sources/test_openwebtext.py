"""The OpenWebText recipe gives the same documents from every layout."""

import io
import json
import subprocess
import sys

import pyarrow.parquet as parquet
import pytest
import zstandard

from configs.load import load_recipe
from pipeline.documents import stage as documents
from tests.support.paths import CHECKOUT, SHARED_DATA
from tests.support.pipeline import corpora

RECIPE = CHECKOUT / "configs" / "openwebtext.yaml"
SAMPLE = SHARED_DATA / "openwebtext-500.jsonl.zst"


@pytest.fixture(scope="module")
def texts():
    """Return 500 real documents if available, or random ones."""
    if not SAMPLE.exists():
        return corpora.texts(300)
    with zstandard.open(SAMPLE, "rb") as stream:
        return [json.loads(line)["text"] for line in io.TextIOWrapper(stream, encoding="utf-8")]


def _overrides(root, keys):
    return [f"run.root={root}", "tokenizer.vocab_size=2000", *(f"{key}={value}" for key, value in keys.items())]


def _cleaned(root):
    folder = root / "openwebtext" / "documents"
    paths = sorted(folder.glob("clean-*.parquet"))
    return [text for path in paths for text in parquet.read_table(path)["text"].to_pylist()]


@pytest.fixture(scope="module")
def expected(texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("jsonl")
    documents.build(load_recipe(RECIPE, _overrides(root, corpora.write("jsonl", texts, root / "source"))))
    return _cleaned(root)


@pytest.mark.parametrize("kind", [kind for kind in corpora.KINDS if kind != "jsonl"])
def test_the_same_documents_from_every_layout(kind, texts, expected, tmp_path):
    keys = corpora.write(kind, texts, tmp_path / "source")
    documents.build(load_recipe(RECIPE, _overrides(tmp_path, keys)))
    assert _cleaned(tmp_path) == expected and len(expected) > 290


@pytest.mark.slow
@pytest.mark.parametrize("kind", corpora.KINDS)
def test_the_complete_command_on_every_layout(kind, texts, expected, tmp_path):
    keys = corpora.write(kind, texts, tmp_path / "source")
    line = [sys.executable, "-m", "pipeline", "run", "--recipe", str(RECIPE), *_overrides(tmp_path, keys)]
    done = subprocess.run(line, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _cleaned(tmp_path) == expected
    assert (tmp_path / "openwebtext" / "tokens" / "manifest.json").exists()
