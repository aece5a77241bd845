"""The report's tables of texts, tasks and checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest

from artefacts.errors import RequestError
from configs.load import load_recipe
from configs.run_layout import RunLayout
from tests.support.paths import CHECKOUT
from training.report.page import build_page
from training.report.run_files import read_run


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def test_texts_tasks_and_checkpoints(tmp_path: Path) -> None:
    recipe = load_recipe(CHECKOUT / "configs" / "demo.yaml", [f"run.root={tmp_path}"])
    layout = RunLayout.of(recipe)
    text = {"bytes": 4321, "bits_per_byte": 3.456, "perplexity": 78.9}
    score = {"examples": 20, "shots": 0, "metrics": {"acc": {"value": 0.625, "stderr": 0.125}}}
    facts = {"checkpoint": "step-00000040", "loss": 2.9, "tokens": 1000, "bytes": 3000, "bits_per_byte": 1.951}
    facts |= {"texts": {"my book": text}, "tasks": {"my task": score}}
    results = {"stages": ["pretrain"], "pretrain": facts, "finetune": {}, "baselines": {}, "experts": {}}
    write_json(layout.evaluation / "evaluation.json", results)
    write_json(layout.pretrain / "metrics.jsonl", {"kind": "validation", "step": 40, "loss": 2.5})
    rows = [{**facts, "step": step, "loss": loss} for step, loss in ((40, 2.9), (20, 3.875))]
    stages = {"pretrain": {"run": "", "checkpoints": rows}, "gone": {"checkpoints": []}}
    write_json(layout.evaluation_log / "checkpoints.json", {"stages": stages})
    page = build_page(read_run(recipe))
    for words in ("my book, pretrain", "4,321", "3.456", "my task acc", "0.625 ± 0.125", "3.875"):
        assert words in page, words
    assert page.index("3.875") < page.rindex("2.900")  # in the order of steps
    (layout.evaluation_log / "checkpoints.json").write_text("{")
    with pytest.raises(RequestError, match=r"checkpoints\.json: damaged"):
        read_run(recipe)
