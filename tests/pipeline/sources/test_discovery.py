"""Which files of a path are read and which are skipped, and the keys in messages."""

import gzip

import pytest

from artefacts import manifest
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from pipeline.documents import stage as documents
from pipeline.reports.preview import preview
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.text import TextSource
from tests.support.pipeline.corpora import recipe, texts, write_jsonl


def _named(root, **sources):
    """A recipe of several sources: name -> keys of its section, as YAML."""
    listed = ", ".join(f"{name}: {{{keys}}}" for name, keys in sources.items())
    return recipe(root, "data.source={}", f"data.sources={{{listed}}}", "data.max_bad_fraction=0.6")


def test_files_with_other_suffixes_are_reported_and_counted(tmp_path, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", texts(30))
    for name in ("scan.pdf", "notes.docx", ".hidden"):
        (folder / name).write_text("x")
    recipe = _named(tmp_path, web=f"kind: jsonl, path: {folder}")
    warning = "data.sources.web.path: ignored 2 files with other endings, for example notes.docx\n"
    preview(recipe, 5)
    assert warning in capsys.readouterr().err
    documents.build(recipe)
    assert warning in capsys.readouterr().err
    assert manifest.read(RunLayout.of(recipe).documents).details["sources"]["web"]["ignored"] == 2
    (folder / "scan.pdf").unlink()
    documents.build(recipe)
    assert "ignored" not in capsys.readouterr().err


def test_uppercase_suffixes(tmp_path):
    (tmp_path / "A.TXT.GZ").write_bytes(gzip.compress(b"a text"))
    source = TextSource(str(tmp_path), 0)
    assert [document.text for part in source.parts(1) for document in source.read(part, BadInputs())] == ["a text"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "text", "openwebtext"])
@pytest.mark.parametrize("pattern", ["", "*"])
def test_a_broken_link_is_an_unreadable_input(tmp_path, kind, pattern):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_jsonl(tmp_path / "other.jsonl", texts(30))
    names = {"openwebtext": ("a.tar", "b.7z", "c.tar.gz", "d_data.xz"), "text": ("a.txt",)}.get(kind, (f"a.{kind}",))
    for name in names:
        (folder / name).symlink_to(tmp_path / "gone")
    path = f"{folder}/{pattern}"
    recipe = _named(tmp_path, web=f"kind: {kind}, path: '{path}'", other=f"kind: jsonl, path: {tmp_path}/other.jsonl")
    with pytest.raises(RequestError, match=rf"{len(names)} of {len(names)} inputs.*unreadable file.*No such file"):
        documents.build(recipe)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("kind: jsonl, path: /nowhere", "data.sources.web.path: /nowhere is neither"),
        ("kind: hub, path: ./nowhere", "data.sources.web.path: ./nowhere"),
        ("kind: pydocs, packages: [nonesuch]", "data.sources.web.packages: no source files of nonesuch"),
        ("kind: csv, path: {0}/a.csv, text_field: body", "data.sources.web.text_field: a.csv has no column 'body'"),
        ("kind: text, path: 'nonesuch://x'", "data.sources.web.path: nonesuch://x"),
    ],
)
def test_an_error_in_a_named_source_names_it(tmp_path, monkeypatch, section, message):
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    (tmp_path / "a.csv").write_text("text\nx\n")
    write_jsonl(tmp_path / "other.jsonl", texts(5))
    recipe = _named(tmp_path, other=f"kind: jsonl, path: {tmp_path}/other.jsonl", web=section.format(tmp_path))
    with pytest.raises(RequestError) as fault:
        documents.build(recipe)
    assert message in str(fault.value)


def test_a_preview_stops_if_nothing_can_be_read(tmp_path):
    write_jsonl(tmp_path / "other.jsonl", texts(5))
    write_jsonl(tmp_path / "web.jsonl", ["a text"] * 4000)
    web = f"kind: jsonl, path: {tmp_path}/web.jsonl, text_field: body"
    recipe = _named(tmp_path, other=f"kind: jsonl, path: {tmp_path}/other.jsonl", web=web)
    with pytest.raises(
        RequestError, match=r"web.jsonl: 1,000 of 1,000 inputs .*: field 'body' missing: 1,000 .*fields"
    ) as fault:
        preview(recipe, 5)
    assert str(fault.value).endswith("text_field, or remove the records without text in that field")
