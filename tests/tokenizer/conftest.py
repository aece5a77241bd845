"""One small trained tokenizer for all tests of this folder."""

import pytest

from artefacts.layout import RunLayout
from pipeline import documents
from tests.pipeline.corpora import of_jsonl, texts, write_jsonl
from tokenizer.load import Tokenizer
from tokenizer.train import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    asked = of_jsonl(root, write_jsonl(root / "source.jsonl", texts(60)))
    documents.build(asked)
    train(asked)
    return asked


@pytest.fixture(scope="session")
def tokenizer(trained):
    return Tokenizer.load(RunLayout.of(trained).tokenizer)
