"""The teaching recipe learns walks through the alphabet and continues them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from artefacts.metrics_log import read_metrics
from tests.support.fork_server import run_command
from tests.support.paths import CHECKOUT
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.engine, pytest.mark.apart]
RECIPE = "configs/teaching/deepseek-teaching.yaml"
SHORT = ("train.steps=300", "train.eval_every=100")


def call(*words: str, root: Path, expect: int = 0) -> str:
    done = run_command([*words, f"run.root={root}", *SHORT], expect)
    return done.stdout + done.stderr


# Half a minute: with fewer steps the model has not learned its walks.
def test_it_learns_and_generates_the_continuation(tmp_path: Path) -> None:
    call("pipeline", "run", "--recipe", RECIPE, root=tmp_path)
    argv = [sys.executable, "-m", "launch", "auto", "pretrain", "--recipe", RECIPE, f"run.root={tmp_path}", *SHORT]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "deepseek-teaching" / "pretrain"
    assert read_metrics(folder / "metrics.jsonl")["validation"][-1]["loss"] < 0.1
    details = json.loads((folder / "manifest.json").read_text())["details"]
    assert details["parameters"]["total"] > 0
    for prompt, expected in (("acegik", "moqsuwyACEGI"), ("XYZ0", "12345678")):
        output = call("training", "generate", "--recipe", RECIPE, f"generate.prompt={prompt}", root=tmp_path)
        assert output.startswith(prompt + expected) and "end of the context" not in output
    # The last character is drawn from the complete context and not read.
    output = call("training", "generate", "--recipe", RECIPE, "generate.max_new_tokens=300", root=tmp_path)
    line, *_, reason = output.splitlines()
    assert len(line) == 129
    assert reason == "stopped at the end of the context: model.max_position_embeddings is 128"
    for wrong, words in (
        ("generate.prompt=ac?é", "the tokenizer does not know '?', 'é'"),
        ("generate.speculative=true", "model.num_nextn_predict_layers is 0"),
        ("generate.prompt=" + "ac" * 70, "140 tokens, beyond model.max_position_embeddings (128)"),
    ):
        output = call("training", "generate", "--recipe", RECIPE, wrong, root=tmp_path, expect=2)
        line = output.splitlines()[-1]
        assert line.startswith("error: ") and words in line and output.count("\n") <= 2
