"""A run for tests of chat examples."""

import pytest

from pipeline.documents import stage as documents
from tests.support.pipeline.corpora import of_jsonl, texts, write_jsonl
from tokenizer.train import train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of a run with a tokenizer. Each test gives its examples a stage of its own."""
    folder = tmp_path_factory.mktemp("run")
    recipe = of_jsonl(folder, write_jsonl(folder / "corpus.jsonl", texts(30)))
    documents.build(recipe)
    train(recipe)
    return folder
