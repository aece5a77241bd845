"""The report's tables of completions in the course of training, and the note on an early end."""

import json
from pathlib import Path
from typing import Any

import pytest

from artefacts.metrics_log import SAMPLES
from configs.load import load_recipe
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tests.support.paths import CHECKOUT
from tests.training.report.test_report import Page, train_record, write_lines
from training.report.prompt_section import prompt_section
from training.report.run_files import read_run
from training.report.training_sections import _events


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe whose pretraining and fine-tuning have begun."""
    recipe = load_recipe(CHECKOUT / "configs" / "demo.yaml", [f"run.root={tmp_path}"])
    for stage in ("pretrain", "sft"):
        write_lines(RunLayout.of(recipe).training(stage) / "metrics.jsonl", [train_record(1, 1.0)])
    return recipe


def test_completions_are_shown_by_step(recipe: Recipe) -> None:
    """The first and the last steps of many, each as last sampled, with line breaks, and only where there are any."""
    layout = RunLayout.of(recipe)
    assert prompt_section(read_run(recipe)) == ""
    records: list[dict[str, Any]] = [
        {"kind": "sample", "step": step, "prompt": prompt, "completion": f"{prompt} <{step}>\nend", "time": "now"}
        for step in [*range(10, 210, 10), 10]
        for prompt in ("One", "Two")
    ]
    records[-1]["completion"] = "again"
    write_lines(layout.pretrain / SAMPLES, records)
    write_lines(layout.finetune("sft") / SAMPLES, records[:4], end='{"kind": "sam')
    text = prompt_section(read_run(recipe))
    shown = Page(text).text
    for words in ("One (pretraining)", "Two (fine-tuning sft)", "10 again", "… 12 more", "200 Two <200> end"):
        assert words in shown, words
    assert "One <30>" in shown and "One <160>" in shown and "Two <10>" in shown
    assert "One <40>" not in shown and "One <150>" not in shown
    assert 'class="texts"' in text and "One &lt;200&gt;\nend" in text


def test_an_early_end_is_noted(recipe: Recipe) -> None:
    event = {"kind": "event", "step": 12, "event": "early_stop", "lowest_step": 9}
    path = RunLayout.of(recipe).finetune("sft") / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps(event) + "\n")
    text = _events(read_run(recipe).finetune_metrics["sft"])
    assert "Training ended early, at step 12. The validation loss was lowest at step 9." in text
