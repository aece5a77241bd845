"""The report page: its inputs, its contents, missing parts, and that it loads no external resources."""

import ast
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.metrics_log import read_metrics
from artefacts.pages.formats import compact
from configs.command import DONE
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tests.support.paths import CHECKOUT
from training.commands.report import report
from training.report.page import build_page, headline
from training.report.run_files import read_run

LAYERS = ("model.layers.1", "model.layers.2")
_ANSWERS = {"held_out_loss_before": 4.1, "held_out_loss_after": 2.2, "examples": 150}


class Page(HTMLParser):
    """Collects the references, elements and text of a page; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.elements: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        if tag not in self.VOID:
            self._open.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        self.references += [value for name, value in attributes if name in names]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def train_record(step: int, loss: float, experts: int = 8) -> dict:
    load = [1.0 + 0.5 * math.sin(step + expert) for expert in range(experts)]
    facts = {"load": load, "variation": 0.2, "max_over_mean": max(load, default=0.0), "bias": [0.01 * step] * experts}
    return {
        "kind": "train",
        "step": step,
        "loss": loss,
        "learning_rate": 0.001,
        "grad_norm": 0.5,
        "targets": 4096,
        "seconds": 0.5,
        "tokens_per_second": 8192.0,
        "model_flops_per_second": 98_000_000_000,
        "memory_bytes": 1_400_000_000,
        "experts": dict.fromkeys(LAYERS, facts) if experts else {},
    }


def write_lines(path: Path, records: list[dict], end: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + end, encoding="utf-8")


def write_manifest(folder: Path, stage: str, counts: dict, details: dict | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder, Manifest(stage, {}, {}, {"millrace": "0.1.0"}, counts, {}, details or {}))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(CHECKOUT / "configs" / "demo.yaml", [f"run.root={tmp_path}", "run.name=small"])


@pytest.fixture
def layout(recipe: Recipe) -> RunLayout:
    return RunLayout.of(recipe)


@pytest.fixture
def complete(recipe: Recipe, layout: RunLayout) -> Recipe:
    """A run with every part."""
    write_manifest(
        layout.documents,
        "documents",
        {
            "documents": 900,
            "bytes": 30_000_000,
            "read_documents": 1000,
            "not_sampled": 40,
            "dropped": {"shorter than <clean.min_chars>": 60},
            "bad_inputs": {},
        },
    )
    write_manifest(layout.tokenizer, "tokenizer", {"vocab_size": 4096, "sample_documents": 500})
    part = {"documents": 450, "bytes": 3000, "tokens": 1000, "shards": 1}
    write_manifest(layout.tokens, "tokens", {"train": part, "validation": part, "dropped": {"overlap": 7}})
    split = {"examples": 10, "tokens": 100, "target_tokens": 50}
    write_manifest(layout.examples, "examples", {"train": split, "held_out": split, "dropped": {"private name": 3}})
    details = {"checkpoint": "step-00000040", "parameters": {"total": 5_123_456, "active": 2_987_654}}
    write_manifest(layout.pretrain, "pretrain", {"steps": 40}, details)
    records = [train_record(step, 8 / step + 2) for step in range(1, 41)]
    write_lines(layout.pretrain / "metrics.jsonl", [*records, {"kind": "validation", "step": 40, "loss": 2.5}])
    write_lines(layout.finetune("sft") / "metrics.jsonl", [train_record(step, 3 / step) for step in range(1, 11)])
    write_evaluation(layout, {"samples": [{"prompt": "Hello", "completion": "world"}]})
    return recipe


def write_evaluation(layout: RunLayout, more: dict) -> None:
    evaluation = {
        "pretrain": {"checkpoint": "step-00000040", "loss": 2.9, "tokens": 1000, "bytes": 3000, "bits_per_byte": 1.951},
        "baselines": {"bigram": {"bits_per_byte": 3.104}, "zstd -19": {"bits_per_byte": 2.532}},
        "finetune": {"sft": {**_ANSWERS, "bits_per_byte": 2.052}},
        "experts": {LAYERS[0]: {"max_over_mean": 1.23, "variation": 0.11, "load": [1.0] * 8}},
    }
    layout.evaluation.mkdir(parents=True, exist_ok=True)
    (layout.evaluation / "evaluation.json").write_text(json.dumps(evaluation | more), encoding="utf-8")


def test_last_line_of_a_repeated_step_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = [train_record(step, 5.0) for step in range(1, 6)]
    again = [train_record(step, 4.0) for step in range(4, 8)]
    write_lines(path, [*first, {"kind": "validation", "step": 5, "loss": 1.0}, *again])
    metrics = read_metrics(path)
    assert [record["step"] for record in metrics["train"]] == [1, 2, 3, 4, 5, 6, 7]
    assert [record["loss"] for record in metrics["train"]] == [5.0, 5.0, 5.0, 4.0, 4.0, 4.0, 4.0]
    assert metrics["validation"] == [{"kind": "validation", "step": 5, "loss": 1.0}]


def test_incomplete_lines_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    torn = json.dumps(train_record(3, 3.0))[:200]
    write_lines(path, [train_record(1, 1.0), train_record(2, 2.0)], end=torn)
    assert [record["step"] for record in read_metrics(path)["train"]] == [1, 2]
    # The resumed run appends to the torn line: its record there is kept.
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(train_record(3, 9.0)) + "\n")
    assert [record["loss"] for record in read_metrics(path)["train"]] == [1.0, 2.0, 9.0]


def test_a_file_with_other_content_is_rejected(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("step,loss\n1,2.0\n", encoding="utf-8")
    with pytest.raises(RequestError, match="not a metrics file"):
        read_metrics(tmp_path / "metrics.jsonl")
    assert read_metrics(tmp_path / "missing.jsonl") == {}


def test_every_part_is_on_the_page(complete, layout):
    assert report(complete) == DONE
    text = layout.report.read_text(encoding="utf-8")
    page = Page(text)
    wanted = ("pretraining", "experts", "evaluation", "finetuning-sft", "samples", "data", "recipe")
    assert [part for part in wanted if f'<section id="{part}">' not in text] == []
    for words in (
        "5.12 M",
        "2.99 M",
        "1.951",
        "2.532",
        "4.100",
        "2.200",
        "-1.900",
        "1.23",
        "Hello",
        "vocabulary of 4,096",
    ):
        assert words in page.text, words
    assert "Still missing" not in page.text
    assert (layout.run / "report-loss.png").read_bytes().startswith(b"\x89PNG")


def test_page_loads_nothing(complete, layout):
    report(complete)
    text = layout.report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.references, "clip paths and rasters refer to something"
    assert [value for value in page.references if not value.startswith(("#", "data:"))] == []
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.elements)
    assert "http" not in text.replace("http-equiv", "")
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    for reference in page.references:
        assert not reference.startswith("#") or f'id="{reference[1:]}"' in text, reference


def test_content_from_files_is_escaped(complete, layout):
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)></pre>"
    write_evaluation(
        layout, {"samples": [{"prompt": evil, "completion": evil}], "baselines": {evil: {"bits_per_byte": 3}}}
    )
    report(complete)
    page = Page(layout.report.read_text(encoding="utf-8"))
    assert not {"script", "img"} & set(page.elements)
    assert page.text.count("<script>alert('x')</script>") >= 2
    assert "shorter than <clean.min_chars>" in page.text


def test_same_files_give_the_same_page(complete):
    assert build_page(read_run(complete)) == build_page(read_run(complete))


def test_a_run_without_anything_to_report_is_rejected(recipe, layout):
    with pytest.raises(RequestError, match="make pretrain"):
        report(recipe)
    assert not layout.run.exists()


@pytest.mark.parametrize("kept", ["documents", "tokens", "pretrain", "finetune"])
def test_any_part_alone_makes_a_page(complete, layout, tmp_path, kept):
    for name in ("documents", "tokenizer", "tokens", "examples", "pretrain", "finetune", "evaluation"):
        if name != kept:
            (layout.run / name).rename(tmp_path / name)
    assert report(complete) == DONE
    page = Page(layout.report.read_text(encoding="utf-8"))
    assert "Still missing" in page.text
    assert "make evaluate" in page.text
    assert (layout.run / "report-loss.png").exists() == (kept == "pretrain")


def test_an_unfinished_run_is_marked(complete, layout):
    (layout.pretrain / manifest.NAME).unlink()
    page = Page(build_page(read_run(complete)))
    assert "Steps so far" in page.text
    assert "the end of pretraining (make pretrain)" in page.text


def test_stale_evaluation_is_pointed_out(complete, layout):
    write_manifest(layout.pretrain, "pretrain", {"steps": 80}, {"checkpoint": "step-00000080"})
    page = Page(build_page(read_run(complete)))
    assert "step-00000040 of pretrain, but the newest checkpoint is step-00000080" in page.text


def test_damaged_evaluation_is_refused(complete, layout):
    (layout.evaluation / "evaluation.json").write_text('{"pretrain": ', encoding="utf-8")
    with pytest.raises(RequestError, match=r"evaluation\.json: damaged"):
        report(complete)


def test_losses_that_are_not_finite(recipe, layout):
    losses = {5: math.nan, 9: math.inf}
    records = [train_record(step, losses.get(step, 3.0), experts=0) for step in range(1, 20)]
    write_lines(layout.pretrain / "metrics.jsonl", records)
    assert report(recipe) == DONE
    page = Page(layout.report.read_text(encoding="utf-8"))
    assert "not drawn: 2" in page.text
    assert "Experts" not in page.text


def test_spikes_and_skipped_steps_are_listed(recipe, layout):
    records = [train_record(step, 3.0, experts=0) for step in range(1, 60)]
    records += [{"kind": "event", "step": step, "event": "spike", "loss": 9.0} for step in range(20, 45)]
    records += [{"kind": "event", "step": 50, "event": "skipped", "reason": "non_finite", "loss": None}]
    write_lines(layout.pretrain / "metrics.jsonl", records)
    assert report(recipe) == DONE
    page = Page(layout.report.read_text(encoding="utf-8"))
    assert "Loss spikes: 25, at step 20, 21," in page.text and "39, …." in page.text
    assert "not finite: 1, at step 50." in page.text


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_first_steps_already_make_a_page(recipe, layout, steps):
    write_lines(layout.pretrain / "metrics.jsonl", [train_record(step, 8.0) for step in range(1, steps + 1)])
    assert report(recipe) == DONE


def test_validation_without_training_records(recipe, layout):
    write_lines(layout.pretrain / "metrics.jsonl", [{"kind": "validation", "step": 3, "loss": 8.0}])
    assert report(recipe) == DONE


def test_pages_of_long_runs_stay_small(recipe, layout):
    records = [train_record(step, 3 + 1 / step, experts=64) for step in range(10, 60_010, 10)]
    write_lines(layout.pretrain / "metrics.jsonl", records)
    assert report(recipe) == DONE
    assert layout.report.stat().st_size < 3_000_000


def test_headline_counts_every_step_of_a_thinned_log(recipe, layout):
    write_lines(layout.pretrain / "metrics.jsonl", [train_record(step, 3.0) for step in range(10, 110, 10)])
    facts = headline(read_run(recipe))
    assert facts["Tokens seen"] == compact(100 * 4096) == "410 k"
    assert facts["Time in steps"] == "50 s"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_report_knows_no_model_and_needs_no_torch():
    for path in (CHECKOUT / "training" / "report").glob("*.py"):
        upward = [n for n in imported(path) if n.startswith(("training.", "pipeline", "tokenizer", "launch"))]
        assert [name for name in upward if not name.startswith("training.report")] == [], path
    code = "import sys, training.commands.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False).returncode == 0
