"""Supervised examples: comparison with plain code, splitting, dropping by reason, and the same bytes after a kill."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as parquet
import pytest

from artefacts import manifest
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from pipeline.documents import ingest, row_files
from pipeline.documents import stage as documents
from pipeline.examples import supervised
from pipeline.examples.supervised_blocks import NO_TARGET, OTHER_LENGTH, TOO_LONG
from pipeline.reports.stats import stats
from pipeline.reports.verify import verify
from pipeline.tokens import encode
from pipeline.tokens import stage as tokens
from tests.support.paths import CHECKOUT
from tests.support.pipeline.corpora import digests
from tests.support.pipeline.corpora import texts as random_texts
from tests.support.pipeline.supervised_corpora import CONFIGS, RECIPES, task_overrides, task_recipe, write_records
from tests.support.waiting import wait_until
from tokenizer.registry import load_tokenizer
from tokenizer.train import train


def _build(recipe):
    documents.build(recipe)
    train(recipe)
    return supervised.build(recipe)


def _sides(recipe):
    folder = RunLayout.of(recipe).examples
    return {
        side: [row for path in sorted(folder.glob(f"{side}-*.parquet")) for row in parquet.read_table(path).to_pylist()]
        for side in ("train", "held-out")
    }


def _documents(recipe):
    folder = RunLayout.of(recipe).documents
    return [row for path in sorted(folder.glob("clean-*.parquet")) for row in parquet.read_table(path).to_pylist()]


_CLASSES = ("apple pie", "Beer", "cake_1")


def _records(task, count=300):
    """Return texts with targets, some of which do not fit into an example."""
    rng = random.Random(task)
    records = []
    for number in range(count):
        text = "".join(rng.choices("abcdefgh ", k=rng.randint(1, 40))).strip() or "a"
        target = {
            "token_classification": lambda text: text.upper() + ("!" if rng.random() < 0.1 else ""),
            "seq2seq": lambda text: "".join(rng.choices("xyz", k=rng.randint(1, 40))),
            "sequence_classification": lambda text: rng.choice((*_CLASSES, " Beer\t")),
        }[task](text)
        records.append((f"{text}{number}", f"{target}{number}" if task != "sequence_classification" else target))
    return [*records, ("control characters alone", "\x00\x01")] if task != "sequence_classification" else records


@pytest.fixture(scope="module", params=sorted(RECIPES))
def run(request, tmp_path_factory):
    """A run with its examples, in several blocks of several row groups."""
    task = request.param
    root = tmp_path_factory.mktemp(task)
    options = write_records(root / "a.jsonl", _records(task))
    more = ["train.context_length=32", "train.global_batch_tokens=256"]
    recipe = task_recipe(
        root, task, *options, *more, *(["model.classes=3"] if task == "sequence_classification" else [])
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "GROUP_BYTES", 500)
        patch.setattr(row_files, "GROUP_BYTES", 500)
        patch.setattr(encode, "_LEAST_BYTES", 1500)
        published = _build(recipe)
        assert len(encode.plan({"jsonl": sorted(RunLayout.of(recipe).documents.glob("clean-*"))})) > 2
    return recipe, published


def test_examples_equal_those_of_plain_code(run):
    recipe, published = run
    most, tokenizer = recipe.train.context_length, load_tokenizer(RunLayout.of(recipe).tokenizer)
    wanted, dropped, cut = [], {}, 0
    for document in _documents(recipe):
        ids, target = tokenizer.encode(document["text"]), tokenizer.encode(document["target"])
        reason = None
        if recipe.task == "sequence_classification":
            learned = {"label": sorted(_CLASSES).index(document["target"].strip())}
            cut += len(ids) > most
            ids = ids[:most]
        else:
            learned = {"targets": target}
            if not target:
                reason = NO_TARGET
            elif len(ids) > most or len(target) + (recipe.task == "seq2seq") > most:
                reason = TOO_LONG
            elif recipe.task == "token_classification" and len(ids) != len(target):
                reason = OTHER_LENGTH
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
        else:
            wanted.append({"ids": ids, **learned, "source": document["id"]})
    sides = _sides(recipe)
    assert sorted(sides["train"] + sides["held-out"], key=lambda row: row["source"]) == sorted(
        wanted, key=lambda row: row["source"]
    )
    assert published.counts["dropped"] == dropped and (recipe.task == "sequence_classification") == (not dropped)
    if recipe.task != "sequence_classification":
        assert dropped.keys() == {NO_TARGET, TOO_LONG} | (
            {OTHER_LENGTH} if recipe.task == "token_classification" else set()
        )
    else:
        assert published.counts["train"]["cut"] + published.counts["held_out"]["cut"] == cut > 0


def test_counts_and_details(run):
    recipe, published = run
    for side, rows in _sides(recipe).items():
        counts = dict(published.counts[side.replace("-", "_")])
        assert counts["examples"] == len(rows) > 5 and counts["tokens"] == sum(len(row["ids"]) for row in rows)
        if recipe.task == "sequence_classification":
            names = published.details["classes"]
            assert counts["targets"] == len(rows)
            assert counts["classes"] == {
                name: sum(row["label"] == place for row in rows) for place, name in enumerate(names)
            }
        else:
            ends = len(rows) if recipe.task == "seq2seq" else 0
            assert counts["targets"] == sum(len(row["targets"]) for row in rows) + ends
    assert published.details["task"] == recipe.task
    assert published.details["classes"] == (sorted(_CLASSES) if recipe.task == "sequence_classification" else [])
    lines = "\n".join(stats(recipe)[0])
    assert re.search(rf"train: targets +{published.counts['train']['targets']:,}\n", lines)
    assert recipe.task != "sequence_classification" or "train: classes: cake_1" in lines


def test_the_split_depends_only_on_the_document(run, tmp_path):
    recipe, _ = run
    before = {row["source"]: side for side, rows in _sides(recipe).items() for row in rows}
    texts = {row["id"]: row["text"] for row in _documents(recipe)}
    again = [(row["text"], row["target"]) for row in reversed(_documents(recipe))]
    options = write_records(tmp_path / "a.jsonl", again)
    classes = ["model.classes=3"] if recipe.task == "sequence_classification" else []
    more = ["train.context_length=32", "train.global_batch_tokens=256", *classes]
    other = task_recipe(tmp_path, recipe.task, *options, *more)
    _build(other)
    sides = {texts[source]: side for source, side in before.items()}
    names = {row["id"]: row["text"] for row in _documents(other)}
    assert {names[row["source"]]: side for side, rows in _sides(other).items() for row in rows} == sides


def test_a_second_build_is_up_to_date_and_verify_detects_damage(run, tmp_path):
    recipe, _ = run
    assert supervised.build(recipe) is None
    intact, faults = verify(recipe, "r.yaml")
    assert not faults and sum("/examples: intact" in line for line in intact) == 1
    root = tmp_path / "run"
    shutil.copytree(recipe.run.root, root)
    moved = recipe.model_copy(update={"run": recipe.run.model_copy(update={"root": str(root)})})
    path = RunLayout.of(moved).examples / "train-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    (fault,) = verify(moved, "r.yaml")[1]
    assert str(path) in fault and "repair: rm -r" in fault and "make examples" in fault
    path.write_bytes(content[:-1])
    with pytest.raises(RequestError, match=r"repair: .*make examples"):
        supervised.build(moved)


def test_another_recipe_moves_them_aside(run, tmp_path):
    recipe, _ = run
    shutil.copytree(recipe.run.root, tmp_path / "run")
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"root": str(tmp_path / "run")})})
    shorter = recipe.train.model_copy(update={"context_length": 24})
    recipe = recipe.model_copy(update={"train_section": shorter})
    published = supervised.build(recipe)
    assert published is not None and max(len(row["ids"]) for row in _sides(recipe)["train"]) <= 24
    assert list((RunLayout.of(recipe).run / "previous").glob("*-examples"))


def test_a_resume_on_more_processes_writes_the_same_bytes(run, tmp_path, monkeypatch):
    """Stop in the second block: the first block is kept, and incomplete files are removed."""
    recipe, _ = run
    shutil.copytree(recipe.run.root, tmp_path / "run")
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"root": str(tmp_path / "run")})})
    layout = RunLayout.of(recipe)
    wanted = digests(layout.examples)
    shutil.rmtree(layout.examples)
    monkeypatch.setattr(encode, "_LEAST_BYTES", 1500)
    rename, begun = supervised.atomic.rename_file, []

    def interrupted(source, target):
        begun.append(target.name)
        if target.name == "train-00001.parquet":
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(supervised.atomic, "rename_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            supervised.build(recipe)
    partial = layout.run / ".examples.partial"
    first = (partial / "work" / "train-00000.parquet").stat().st_mtime_ns
    assert supervised.build(recipe) is not None and digests(layout.examples) == wanted
    assert (layout.examples / "train-00000.parquet").stat().st_mtime_ns == first
    assert not partial.exists()


def test_killed_and_started_again(tmp_path):
    line = [sys.executable, "-m", "pipeline"]
    options = ["--recipe", str(CONFIGS / "seq2seq-reverse.yaml"), *task_overrides(tmp_path)]
    options += ["data.source={kind: sequences, documents: 20000, min_chars: 100, max_chars: 300}", "data.workers=2"]
    options += ["train={context_length: 320, global_batch_tokens: 320, steps: 1, learning_rate: 1}"]
    options += ["model.max_position_embeddings=320"]

    def run(verb):
        return subprocess.run([*line, verb, *options], cwd=CHECKOUT, capture_output=True, text=True)

    done = run("run")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "seq2seq-reverse" / "examples"
    wanted = digests(folder)
    shutil.rmtree(folder)

    def written():
        try:
            return sorted((folder.parent / ".examples.partial").rglob("*"))
        except FileNotFoundError:  # a file was renamed meanwhile
            return None

    hits = 0
    for _ in range(3):
        before = written()
        command = [*line, "examples", *options]
        process = subprocess.Popen(command, cwd=CHECKOUT, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_until(lambda before=before, process=process: written() != before or process.poll() is not None, "new file")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        hits += process.wait() == -signal.SIGKILL
    assert hits, "the stage is over too soon to be hit at work"
    assert run("examples").returncode == 0 and digests(folder) == wanted


def _labels(root, records, *more):
    options = write_records(root / "a.jsonl", records)
    return task_recipe(root, "sequence_classification", *options, *more)


def test_other_classes_than_the_model_has(tmp_path):
    records = [(text, "even" if n % 2 else "odd") for n, text in enumerate(random_texts(40))]
    line = ["run", "--recipe", str(CONFIGS / "classifier.yaml")]
    line += task_overrides(tmp_path, *write_records(tmp_path / "a.jsonl", records))
    done = subprocess.run([sys.executable, "-m", "pipeline", *line], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "model.classes is 6, but the documents have 2 classes (even, odd): set model.classes" in message
    recipe = _labels(tmp_path, records, "model.classes=2")
    assert _build(recipe).details["classes"] == ["even", "odd"]
    # It is refused before anything is moved, so published files stay.
    with pytest.raises(RequestError, match=r"model\.classes is 3"):
        supervised.build(_labels(tmp_path, records, "model.classes=3"))
    assert manifest.read(RunLayout.of(recipe).examples) is not None
    many = [(text, f"class {n}") for n, text in enumerate(random_texts(40))]
    with pytest.raises(RequestError, match=r"have 40 classes \(class 0, class 1, .*, …\)"):
        _build(_labels(tmp_path, many, "model.classes=2"))


def test_too_many_empty_targets(tmp_path):
    records = [(text, "" if n == 7 else "x") for n, text in enumerate(random_texts(20))]
    with pytest.raises(RequestError, match=r"1 of 20 .*: empty target: 1 \(a.jsonl at byte \d+\): give every text"):
        documents.build(_labels(tmp_path, records))


def test_a_side_without_an_example_is_named(tmp_path):
    records = [(f"{n} of a length", "x" * (60 if n else 3)) for n in range(20)]
    recipe = task_recipe(tmp_path, "seq2seq", *write_records(tmp_path / "a.jsonl", records))
    with pytest.raises(RequestError, match=r"no (training|held-out) example is left .*: 19 longer than train"):
        _build(recipe)
    alone = task_recipe(tmp_path, "seq2seq", *write_records(tmp_path / "a.jsonl", records[:1]))
    with pytest.raises(RequestError, match="all 1 documents of jsonl are held out for validation"):
        _build(alone)


def test_artefacts_of_another_recipe_are_rejected(tmp_path):
    options = write_records(tmp_path / "a.jsonl", [(f"text {n}", f"target {n}") for n in range(30)])
    recipe = task_recipe(tmp_path, "seq2seq", *options)
    _build(recipe)
    with pytest.raises(RequestError, match="is trained on examples, not on shards: run `make examples"):
        tokens.build(recipe)
    other = task_recipe(tmp_path, "seq2seq", *options, "data.clean.max_chars=1000")
    with pytest.raises(RequestError, match=r"documents was built with another recipe .*run `make data"):
        supervised.build(other)
    labels = task_recipe(
        tmp_path, "sequence_classification", *options, "model.classes=30", f"data.root={RunLayout.of(recipe).data}"
    )
    with pytest.raises(RequestError, match=r"tokenizer was built with another recipe .*the model's task"):
        supervised.build(labels)


def test_row_groups_grow_with_their_targets(tmp_path, monkeypatch):
    options = write_records(tmp_path / "a.jsonl", [(f"{n}", "target " * 20) for n in range(64)])
    monkeypatch.setattr(ingest, "GROUP_BYTES", 1000)
    monkeypatch.setattr(row_files, "GROUP_BYTES", 2000)
    documents.build(task_recipe(tmp_path, "seq2seq", *options))
    (path,) = (tmp_path / "seq2seq-reverse" / "documents").glob("clean-*")
    assert parquet.ParquetFile(path).num_row_groups >= 4


def test_one_text_is_on_one_side(tmp_path):
    """Translations of a sentence, and targets that differ by a space, are on the same side."""
    texts = [f"number {n}" for n in range(60)]
    records = [(text, target) for text in texts for target in ("one", "two", " one")]
    options = write_records(tmp_path / "a.jsonl", records)
    recipe = task_recipe(tmp_path, "seq2seq", *options, "data.tokens.validation_fraction=0.3")
    published = _build(recipe)
    seen = {side: {tuple(row["ids"]) for row in rows} for side, rows in _sides(recipe).items()}
    assert not seen["train"] & seen["held-out"] and len(seen["train"] | seen["held-out"]) == 60
    counts = published.counts
    assert counts["train"]["examples"] + counts["held_out"]["examples"] == 120
