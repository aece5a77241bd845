"""The documents stage: every document is counted, and the result does not depend on order or workers."""

import json

import pyarrow.parquet as parquet
import pytest

from artefacts.errors import RequestError, UnreachableError
from configs.run_layout import RunLayout
from pipeline.cleaning.cleaner import TOO_SHORT
from pipeline.documents import stage as documents
from pipeline.documents.write_shards import DUPLICATE, NEAR_DUPLICATE
from pipeline.parallel import ALL_TASKS, TaskShard
from pipeline.sources import file_source
from pipeline.sources.jsonl import JsonlSource
from tests.support.pipeline.corpora import digests, of_jsonl, recipe, texts, write_jsonl


def _corpus(folder):
    """Write six files with duplicates within and across them, short documents and CRLF."""
    folder.mkdir()
    corpus = texts(120)
    for number in range(6):
        part = corpus[number * 20 : number * 20 + 20]
        write_jsonl(folder / f"{number}.jsonl", [*part, "short", part[0].replace("\n", "\r\n"), corpus[0]])
    return folder


def test_every_document_is_accounted_for(tmp_path):
    recipe = of_jsonl(tmp_path, _corpus(tmp_path / "source"), "data.source.sample_bytes=40000")
    published = documents.build(recipe)
    assert published is not None
    counts = published.counts
    assert counts["read_documents"] == 6 * 23
    assert counts["dropped"] == {TOO_SHORT: 6, DUPLICATE: 12}
    assert counts["documents"] + counts["not_sampled"] + sum(counts["dropped"].values()) == 6 * 23
    assert 35_000 < counts["bytes"] <= 40_000
    folder = RunLayout.of(recipe).documents
    kept = parquet.read_table(folder / "clean-00000.parquet")
    assert kept["bytes"].to_pylist() == [len(text.encode()) for text in kept["text"].to_pylist()]
    rejected = parquet.read_table(folder / "rejected-00000.parquet")
    assert sorted(rejected["reason"].to_pylist()) == [TOO_SHORT] * 6 + [DUPLICATE] * 12
    assert documents.build(recipe) is None


def test_duplicates_can_be_kept(tmp_path, capfd):
    published = documents.build(of_jsonl(tmp_path, _corpus(tmp_path / "source"), "data.clean.exact_dedup=false"))
    assert published is not None and published.counts["documents"] == 6 * 22
    assert "duplicates" not in capfd.readouterr().err


def test_a_step_without_work_has_no_progress_bar(tmp_path, capfd):
    documents.build(of_jsonl(tmp_path, _corpus(tmp_path / "source")))
    output = capfd.readouterr().err
    assert "duplicates: 100%" in output and "0.00task [" not in output


def test_the_first_of_several_duplicates_is_kept(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*texts(3), texts(3)[1]])
    recipe = of_jsonl(tmp_path, path)
    documents.build(recipe)
    kept = parquet.read_table(RunLayout.of(recipe).documents / "clean-00000.parquet")
    assert kept["text"].to_pylist() == texts(3)


def test_another_seed_takes_another_sample(tmp_path):
    recipe = of_jsonl(tmp_path, _corpus(tmp_path / "source"), "data.source.sample_bytes=30000")
    documents.build(recipe)
    kept = parquet.read_table(RunLayout.of(recipe).documents / "clean-00000.parquet")
    other = of_jsonl(tmp_path / "other", tmp_path / "source", "data.source.sample_bytes=30000", "run.seed=5")
    documents.build(other)
    others = parquet.read_table(RunLayout.of(other).documents / "clean-00000.parquet")
    assert kept["id"].to_pylist() != others["id"].to_pylist()


def test_the_same_bytes_with_any_number_of_workers(tmp_path):
    corpus = _corpus(tmp_path / "source")
    digests_of_runs = []
    for workers in (1, 2):
        recipe = of_jsonl(tmp_path / str(workers), corpus, f"data.workers={workers}", "data.source.sample_bytes=40000")
        documents.build(recipe)
        digests_of_runs.append(digests(RunLayout.of(recipe).documents))
    assert digests_of_runs[0] == digests_of_runs[1] and "manifest.json" in digests_of_runs[0]


def test_tasks_write_the_same_bytes_as_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(file_source, "PART_BYTES", 1 << 14)
    corpus = _corpus(tmp_path / "source")
    (corpus / "0.jsonl").write_text(
        json.dumps({"text": "Write to a@b.de or c@d.de, or call 415-555-2671. " * 30}) + "\n"
    )
    rules = ("data.source.sample_bytes=40000", "data.clean.near_dedup.enabled=true", "data.clean.line_dedup_chars=40")
    rules += ("data.clean.mask=[email,ip,phone]",)
    whole, shared = (of_jsonl(tmp_path / name, corpus, *rules) for name in ("whole", "shared"))
    published = documents.build(whole)
    assert published.counts["masked"] == {"email": 60, "ip": 0, "phone": 30}
    with pytest.raises(RequestError, match="has not been read yet"):
        documents.find_duplicates(shared, TaskShard(0, 3))
    for task in (2, 0):
        documents.ingest(shared, TaskShard(task, 3))
    with pytest.raises(RequestError, match=r"\d+ of \d+ parts of the source have not been read yet \(the first is 1\)"):
        documents.find_duplicates(shared, TaskShard(0, 2))
    documents.ingest(shared, TaskShard(1, 3))
    for task in (1, 0):
        assert not documents.find_duplicates(shared, TaskShard(task, 2))
    with pytest.raises(RequestError, match="duplicates are not resolved yet"):
        documents.build(shared, TaskShard(0, 2))
    assert documents.find_duplicates(shared, TaskShard(0, 1))
    for task in (0, 1):
        assert documents.build(shared, TaskShard(task, 2)) is None
    assert documents.build(shared) is not None
    assert digests(RunLayout.of(shared).documents) == digests(RunLayout.of(whole).documents)


def test_near_duplicates_and_repeated_lines_are_removed(tmp_path):
    corpus = texts(40)
    near = corpus[3].replace(corpus[3].split()[-1], "elsewhere.")
    last = corpus[5].split("\n")[-1]
    repeated = corpus[6] + "\n" + last
    path = write_jsonl(tmp_path / "a.jsonl", [*corpus[:6], near, repeated, *corpus[7:]])
    recipe = of_jsonl(
        tmp_path, path, "data.clean.near_dedup.enabled=true", f"data.clean.line_dedup_chars={min(len(last), 30)}"
    )
    counts = documents.build(recipe).counts
    assert counts["dropped"] == {NEAR_DUPLICATE: 1}
    assert counts["removed_lines"] == 1
    kept = parquet.read_table(RunLayout.of(recipe).documents / "clean-00000.parquet")["text"].to_pylist()
    assert kept[6] == corpus[6] and near not in kept


def test_a_line_rule_that_leaves_too_little_drops_the_document(tmp_path):
    corpus = texts(6)
    path = write_jsonl(tmp_path / "a.jsonl", [*corpus, "\n".join(corpus[2].split("\n")[:3])])
    recipe = of_jsonl(tmp_path, path, "data.clean.line_dedup_chars=10")
    counts = documents.build(recipe).counts
    assert counts["dropped"] == {TOO_SHORT: 1} and counts["documents"] == 6


def test_several_sources_keep_their_shards_apart(tmp_path):
    corpus = texts(60)
    a, b = write_jsonl(tmp_path / "a.jsonl", corpus[:40]), write_jsonl(tmp_path / "b.jsonl", corpus[30:])
    run_recipe = recipe(
        tmp_path,
        "data.source={}",
        f"data.sources={{web: {{kind: jsonl, path: {a}}}, books: {{kind: jsonl, path: {b}, weight: 3}}}}",
    )
    manifest = documents.build(run_recipe)
    assert manifest.details["files"] == {"web": ["clean-00000.parquet"], "books": ["clean-00001.parquet"]}
    assert manifest.counts["sources"]["books"]["dropped"] == {DUPLICATE: 10}
    assert manifest.counts["documents"] == 60


@pytest.mark.parametrize(
    ("left_over", "message"),
    [
        (["short"] * 12, r"12 shorter than data.clean.min_chars: relax data.clean.min_chars, or"),
        (
            ["short"] * 3 + texts(2),
            r"3 shorter .*, 2 the same text .*: relax .*min_chars or data.clean.exact_dedup, or",
        ),
    ],
)
def test_a_source_without_kept_documents_is_rejected_with_its_counts(tmp_path, left_over, message):
    a, b = write_jsonl(tmp_path / "a.jsonl", ["short", *texts(40)]), write_jsonl(tmp_path / "b.jsonl", texts(5, seed=1))
    sources = f"data.sources={{web: {{kind: jsonl, path: {a}}}, books: {{kind: jsonl, path: {b}}}}}"
    run_recipe = recipe(tmp_path, "data.source={}", sources)
    documents.build(run_recipe)
    before = digests(RunLayout.of(run_recipe).documents)
    write_jsonl(b, left_over)
    with pytest.raises(
        RequestError, match=rf"^data.sources.books: no document is left after cleaning: {message} remove this"
    ):
        documents.build(run_recipe)
    assert digests(RunLayout.of(run_recipe).documents) == before and not (tmp_path / "demo" / "previous").exists()


def test_a_failed_request_leaves_no_files(tmp_path):
    recipe = of_jsonl(tmp_path / "run", write_jsonl(tmp_path / "a.jsonl", ["short"] * 3))
    for refused in (recipe, of_jsonl(tmp_path / "run", tmp_path / "a.jsonl", "data.source.text_field=nothing")):
        with pytest.raises(RequestError):
            documents.build(refused)
        assert not (tmp_path / "run").exists()


def test_a_lone_surrogate_is_removed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a\ud800b" + texts(1)[0]}) + "\n")
    documents.build(of_jsonl(tmp_path, path))
    kept = parquet.read_table(tmp_path / "demo" / "documents" / "clean-00000.parquet")["text"].to_pylist()
    assert kept == ["ab" + texts(1)[0]]


def test_finished_documents_need_no_reachable_source(tmp_path, monkeypatch, capsys):
    recipe = of_jsonl(tmp_path, write_jsonl(tmp_path / "a.jsonl", texts(5)))
    documents.build(recipe)

    def unreachable(self):
        raise UnreachableError("nobody answers")

    monkeypatch.setattr(JsonlSource, "inputs", unreachable)
    assert documents.build(recipe) is None
    assert "kept without comparing it to its source: nobody answers" in capsys.readouterr().err
    with pytest.raises(UnreachableError):
        documents.build(of_jsonl(tmp_path, tmp_path / "a.jsonl", "data.clean.min_chars=61"))


def test_unreadable_inputs_are_listed(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", texts(5))
    path.write_text(path.read_text() + "{broken\n")
    recipe = of_jsonl(tmp_path, path, "data.max_bad_fraction=0.2")
    documents.build(recipe)
    listed = json.loads((RunLayout.of(recipe).documents / "unreadable.json").read_text())
    assert listed == {"jsonl": {"malformed line": [f"a.jsonl at byte {path.stat().st_size - 8}"]}}


def test_ids_are_unique_across_sources(tmp_path):
    for name, corpus in zip("ab", (texts(30), texts(30, seed=1)), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("\n\n".join(corpus))
    listed = ", ".join(f"{name}: {{kind: text, path: {tmp_path / name}, sample_bytes: 12000}}" for name in "ab")
    run_recipe = recipe(tmp_path, "data.source={}", f"data.sources={{{listed}}}")
    documents.build(run_recipe)
    tables = [
        parquet.read_table(path) for path in sorted(RunLayout.of(run_recipe).documents.glob("*-0000[01].parquet"))
    ]
    ids = [identifier for table in tables for identifier in table["id"].to_pylist()]
    assert len(ids) == len(set(ids)) and {identifier[:13] for identifier in ids} == {"a:text:a.txt:", "b:text:a.txt:"}
    alone = recipe(tmp_path / "alone", "data.source.kind=text", f"data.source.path={tmp_path / 'a'}")
    documents.build(alone)
    table = parquet.read_table(RunLayout.of(alone).documents / "clean-00000.parquet")
    assert table["id"].to_pylist()[0] == "text:a.txt:0"


@pytest.mark.parametrize("name", ["source", "source/*.jsonl", "source/0.jsonl"])
def test_finished_documents_need_no_raw_text(tmp_path, capsys, name):
    source = _corpus(tmp_path / "source")
    recipe = of_jsonl(tmp_path, tmp_path / name)
    documents.build(recipe)
    capsys.readouterr()
    for path in source.iterdir():
        path.unlink()
    for _ in range(2):
        assert documents.build(recipe) is None
        output = capsys.readouterr().err
        assert f"data.source.path: {tmp_path / name} no longer exists" in output and output.count("\n") == 1
        if source.exists():
            source.rmdir()
    with pytest.raises(RequestError, match="is neither a file nor a folder"):
        documents.build(of_jsonl(tmp_path, tmp_path / "elsewhere.jsonl"))
    with pytest.raises(RequestError, match="is neither a file nor a folder"):
        documents.build(of_jsonl(tmp_path, tmp_path / name, "data.clean.min_chars=61"))
    assert not (tmp_path / "demo" / ".documents.partial").exists()


def test_of_several_sources_only_the_existing_ones_are_compared(tmp_path, capsys):
    a, b = write_jsonl(tmp_path / "a.jsonl", texts(20)), write_jsonl(tmp_path / "b.jsonl", texts(20, seed=1))
    listed = f"data.sources={{web: {{kind: jsonl, path: {a}}}, books: {{kind: jsonl, path: {b}}}}}"
    run_recipe = recipe(tmp_path, "data.source={}", listed)
    documents.build(run_recipe)
    a.unlink()
    assert documents.build(run_recipe) is None and "data.sources.web.path" in capsys.readouterr().err
    write_jsonl(b, texts(10, seed=1))
    with pytest.raises(RequestError, match="is neither a file nor a folder"):
        documents.build(run_recipe)


def test_a_task_reports_that_its_tables_are_part_of_the_source(tmp_path, monkeypatch):
    monkeypatch.setattr(file_source, "PART_BYTES", 200_000)
    (tmp_path / "source").mkdir()
    for number in range(6):
        write_jsonl(tmp_path / "source" / f"{number}.jsonl", texts(250, seed=number))
    recipe = of_jsonl(tmp_path, tmp_path / "source")
    tables = [documents.ingest(recipe, TaskShard(task, 3)) for task in range(3)]
    assert tables[0][0].endswith(" parts of the source have been read so far, over all tasks")
    assert tables[2][0].startswith("all ") and documents.ingest(recipe, ALL_TASKS) == tables[2][2:]
    (line,) = documents.outcome(documents.build(recipe), recipe)
    assert "not sampled" not in line and line.endswith("0 dropped")
