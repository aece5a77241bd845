"""Small trained tokenizers for all tests of this folder."""

import pytest

from configs.load import load_recipe
from configs.run_layout import RunLayout
from tests.support.pipeline.corpora import RECIPE, of_jsonl, texts, write_jsonl
from tests.support.tokenizers import publish_documents
from tokenizer.bpe import BpeTokenizer
from tokenizer.registry import load_tokenizer
from tokenizer.train import _fit, train

#: Scripts, quotes and dashes whose neighbors become pieces, so words are cut differently than in plain English.
_MANY_SCRIPTS = (
    "Überaus naïve Ärzte’s “zitierte” Wörter — größer… déjà–vu; don’t l’été. "
    "日本語の文章と漢字とかなと。中文文章也在這裡。 Привет, мир! Ещё слова. مرحبا بالعالم 👩‍👩‍👧 🎉🎉 "
    "x_1=foo(bar)[0]  # indented    code\n\n\treturn ——— ‘a’ ‘b’ “c” ‰ ∑x²≤y³ "
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    recipe = of_jsonl(root, write_jsonl(root / "source.jsonl", texts(60)))
    publish_documents(recipe)
    train(recipe)
    return recipe


@pytest.fixture(scope="session")
def tokenizer(trained):
    return load_tokenizer(RunLayout.of(trained).tokenizer)


@pytest.fixture(scope="session")
def many_scripts():
    """A tokenizer with pieces of many scripts."""
    return BpeTokenizer(_fit([_MANY_SCRIPTS * 3] * 3, load_recipe(RECIPE, ["tokenizer.vocab_size=520"])))
