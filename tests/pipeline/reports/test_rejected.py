"""``python -m pipeline rejected`` shows the dropped documents."""

import re

import pytest

from artefacts.errors import RequestError
from pipeline.__main__ import main
from pipeline.cleaning.cleaner import TOO_SHORT
from pipeline.documents import stage as documents
from pipeline.documents.write_shards import DUPLICATE
from pipeline.reports.rejected import rejected
from tests.support.pipeline.corpora import RECIPE, of_jsonl, overrides, texts, write_jsonl


@pytest.fixture
def source(tmp_path):
    corpus = texts(20)
    return write_jsonl(tmp_path / "a.jsonl", [*corpus, "short\x1b[2J\nin lines", *corpus[:12], "tiny"])


def test_counts_come_first_then_documents(tmp_path, source, capsys):
    documents.build(of_jsonl(tmp_path, source))
    options = overrides(tmp_path, "data.source.kind=jsonl", f"data.source.path={source}")
    capsys.readouterr()
    assert main(["rejected", "--recipe", str(RECIPE), *options]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"12  {DUPLICATE}\n 2  {TOO_SHORT}\n\n") and output.count("jsonl:a.jsonl:") == 10
    assert max(len(line) for line in output.splitlines()) <= 202
    assert main(["rejected", "--recipe", str(RECIPE), "--reason", "SHORT", "--limit", "1", *options]) == 0
    (counts, _, head, text) = capsys.readouterr().out.splitlines()
    assert counts == f"2  {TOO_SHORT}" and re.fullmatch(rf"jsonl:a.jsonl:\d+: {TOO_SHORT}", head)
    assert text == "  short[2J in lines"


def test_missing_documents_and_reasons_are_reported(tmp_path, source):
    recipe = of_jsonl(tmp_path, source)
    with pytest.raises(RequestError, match=r"missing or not finished: run `make data"):
        list(rejected(recipe, None, 10))
    documents.build(recipe)
    with pytest.raises(
        RequestError, match=f"--reason dull: no document was dropped for it; the reasons are: {DUPLICATE}"
    ):
        list(rejected(recipe, "dull", 10))
    whole = of_jsonl(tmp_path / "whole", write_jsonl(tmp_path / "b.jsonl", texts(5)))
    documents.build(whole)
    assert list(rejected(whole, None, 10)) == [f"{tmp_path / 'whole' / 'demo' / 'documents'}: no document was dropped"]
